# make help lists the targets. Everything works on a machine with Go, git and make; make test also needs a C compiler for
# the race detector, make image one of docker, podman or buildah.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

# The control plane's programs and the linter are built once and kept outside the tree.
CACHE := $(or $(KUBE_REGO_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kube-rego)
GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT := $(CACHE)/tools/$(GOLANGCI_LINT_VERSION)/golangci-lint


.PHONY: build
build: ## build bin/kube-rego
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/kube-rego ./cmd/kube-rego

.PHONY: demo
demo: programs ## play the whole story on two real control planes (the first time builds them: about 10 minutes)
	@e2e/run demo --dir ../.local/demo

.PHONY: test
test: ## run all tests, unit and end to end, side by side and with the race detector
	@e2e/run sidebyside -race

.PHONY: programs
programs:
	@echo 'looking for the programs of the control plane (the first time builds them: about 10 minutes)'
	@e2e/run programs >/dev/null

.PHONY: lint
lint: $(GOLANGCI_LINT) ## check style, suspicious code and that go.mod is tidy
	$(GOLANGCI_LINT) run ./...
	cd e2e && $(GOLANGCI_LINT) run ./...
	go mod tidy -diff
	cd e2e && go mod tidy -diff

$(GOLANGCI_LINT):
	@echo 'building golangci-lint $(GOLANGCI_LINT_VERSION) (once, about 4 minutes on 2 cores)'
	GOBIN=$(dir $@) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)

.PHONY: bench
bench: programs ## measure start, changes and decisions on the real API server, and compilation; prints tables
	go test -run '^$$' -bench . -benchtime 3x ./pkg/compile ./pkg/engine ./pkg/admission
	cd e2e && go test -run '^$$' -bench . -benchtime 1x -timeout 60m ./...

# With the flags of the control plane's own build, so that what both need is compiled once.
E2E_TEST := CGO_ENABLED=0 go test -v -trimpath -vet=off -count=1

RESTARTS ?= 1000

.PHONY: restarts
restarts: programs ## kill replicas at 1,000 random moments under edits, and judge every decision (about 15 minutes)
	cd e2e && KUBE_REGO_RESTARTS=$(RESTARTS) $(E2E_TEST) -timeout 2h -run '^TestRandomRestarts$$' .

# About how many minutes make soak takes on two cores, and the seed of its first sequences.
SOAK ?= 30
SEED ?=
soak_seed := $(or $(SEED),$(shell date +%s))
# A line for each of thousands of sequences is too much.
soak_tests = -timeout 24h -run '^($(1))$$' $(2) | grep --line-buffered -vE '^ *(===|--- PASS: .*/)'

.PHONY: soak
soak: programs ## let the random tests run long, about SOAK=30 minutes; SEED=n repeats a run, and is printed
	@echo 'make soak SOAK=$(SOAK) SEED=$(soak_seed)'
	export KUBE_REGO_SEED=$(soak_seed) KUBE_REGO_SOAK=$$(($(SOAK) * 150)); \
		go test -v -vet=off -count=1 $(call soak_tests,TestTheLoopDoesWhatTheModelSays|TestReplicasComeToTheSameSet,./pkg/enforce)
	export KUBE_REGO_SEED=$(soak_seed) KUBE_REGO_SOAK=$$(($(SOAK) * 20)); \
		go test -v -vet=off -count=1 $(call soak_tests,TestAllWaysInAgree,./pkg/enforce)
	go test -v -vet=off -count=1 $(call soak_tests,TestWhateverIsEdited|TestRandom.*,./pkg/compile ./pkg/admission)
	cd e2e; export KUBE_REGO_SEED=$(soak_seed) KUBE_REGO_SOAK=$$(($(SOAK) / 2 + 1)); \
		$(E2E_TEST) $(call soak_tests,TestDataFollowsTheCluster,.)
	cd e2e; export KUBE_REGO_SEED=$(soak_seed) KUBE_REGO_RESTARTS=$$(($(SOAK) * 30)); \
		$(E2E_TEST) $(call soak_tests,TestRandomRestarts,.)

# The version that make upgrade-test starts from: the last release or, as long as there is none, the last commit in which
# pkg/engine was one package.
BEFORE ?= $(shell git describe --tags --abbrev=0 HEAD^ 2>/dev/null || echo 7007c56)

.PHONY: upgrade-test
upgrade-test: programs ## roll out this version over that of BEFORE=<commit or tag>, and back, beside running replicas
	@echo 'make upgrade-test BEFORE=$(BEFORE)'
	@git cat-file -e '$(BEFORE)^{commit}' 2>/dev/null || { echo 'there is no commit $(BEFORE) here: in a shallow' \
		'clone, git fetch --unshallow --tags gets it; BEFORE=<commit or tag> names another one' >&2; exit 1; }
	cd e2e && KUBE_REGO_BEFORE=$(BEFORE) $(E2E_TEST) -timeout 30m -run '^TestUpgradeAndRollback$$' .

.PHONY: fuzz
fuzz: ## a minute for each fuzz target
	go test -run '^$$' -fuzz FuzzReview -fuzztime 1m ./pkg/admission
	go test -run '^$$' -fuzz FuzzAnswer -fuzztime 1m ./pkg/admission
	go test -run '^$$' -fuzz FuzzJSONPatch -fuzztime 1m ./pkg/admission
	go test -run '^$$' -fuzz FuzzStatus -fuzztime 1m ./pkg/configmap
	go test -run '^$$' -fuzz FuzzParse -fuzztime 1m ./pkg/data

# The first of docker, podman and buildah that works here: a docker client without its engine does not.
CONTAINER_TOOL ?= $(firstword $(foreach tool,docker podman buildah,$(shell $(tool) info >/dev/null 2>&1 && echo $(tool))))

.PHONY: image
image: ## build the image kube-rego:dev with docker, podman or buildah
	@tool='$(CONTAINER_TOOL)'; [ -n "$$tool" ] || { echo 'make image needs docker, podman or buildah' >&2; exit 1; }
	CGO_ENABLED=0 GOOS=linux go build -trimpath -ldflags '$(LDFLAGS)' -o bin/linux/kube-rego ./cmd/kube-rego
	$(CONTAINER_TOOL) build -t kube-rego:dev --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null || echo unknown) .

.PHONY: cluster
cluster: programs ## start a local control plane and write .local/kubeconfig
	@e2e/run cluster up --dir ../.local/cluster --kubeconfig ../.local/kubeconfig --stop-command 'make cluster-down'

.PHONY: cluster-down
cluster-down: ## stop what make cluster started
	@e2e/run cluster down --dir ../.local/cluster

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
