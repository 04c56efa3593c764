package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

func TestWrongCommandLine(t *testing.T) {
	for _, test := range []struct {
		args string
		want string
	}{
		{"", "no command"},
		{"restart", `unknown command "restart"`},
		{"up --no-such-flag", "flag provided but not defined: -no-such-flag"},
		{"up --kubeconfig file", "flag missing: --dir"},
		{"up --dir dir", "flag missing: --kubeconfig"},
		{"down --dir=", "empty path"},
		{"down --dir dir more", `unexpected argument "more"`},
	} {
		t.Run(test.args, func(t *testing.T) {
			code, out, errOut := runIn(t, strings.Fields(test.args)...)
			if code != 2 || out != "" || strings.Count(errOut, "\n") != 1 || !strings.Contains(errOut, test.want) {
				t.Errorf("exit code %d, stdout %q, stderr %q; want 2 and one line with %q", code, out, errOut, test.want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"up", "--help"}, {"down", "-h"}} {
		if code, out, errOut := runIn(t, args...); code != 0 || out != usage || errOut != "" {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", args, code, out, errOut)
		}
	}
}

func TestQuote(t *testing.T) {
	for path, want := range map[string]string{
		"/home/me/kubeconfig": "/home/me/kubeconfig",
		"/home/me/it's here":  `'/home/me/it'\''s here'`,
	} {
		if got := quote(path); got != want {
			t.Errorf("quote(%q) = %s, want %s", path, got, want)
		}
	}
}

// TestUpAndDown lives through what a user does to a local cluster, mishap included.
func TestUpAndDown(t *testing.T) {
	root := t.TempDir()
	dir, kubeconfig := filepath.Join(root, "cluster"), filepath.Join(root, "kubeconfig")
	upArgs := []string{"up", "--dir", dir, "--kubeconfig", kubeconfig, "--stop-command", "make cluster-down"}
	t.Cleanup(func() { run(context.Background(), []string{"down", "--dir", dir}, t.Output(), t.Output()) })

	out := succeed(t, upArgs...)
	for _, want := range []string{"starting kube-apiserver\n", "export KUBECONFIG=" + kubeconfig + "\n", "stop it:  make cluster-down\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("up does not say %q:\n%s", want, out)
		}
	}
	first := server(t, kubeconfig)

	if err := os.Remove(kubeconfig); err != nil {
		t.Fatal(err)
	}
	if out := succeed(t, upArgs...); !strings.Contains(out, "is running already at "+first) || strings.Contains(out, "starting") {
		t.Errorf("second up says:\n%s", out)
	}
	if again := server(t, kubeconfig); again != first {
		t.Errorf("second up: server %s, want still %s", again, first)
	}

	kill(t, filepath.Join(dir, "etcd.pid"))
	if out := succeed(t, upArgs...); !regexp.MustCompile(`is ready at https://127\.0\.0\.1:\d+ after `).MatchString(out) {
		t.Errorf("up after etcd died says:\n%s", out)
	}
	second := server(t, kubeconfig)

	if out := succeed(t, "down", "--dir", dir); !strings.Contains(out, "stopped") {
		t.Errorf("down says: %s", out)
	}
	for _, url := range []string{first, second} {
		if connection, err := net.Dial("tcp", strings.TrimPrefix(url, "https://")); err == nil {
			connection.Close()
			t.Errorf("after down, %s is still open", url)
		}
	}
	if out := succeed(t, "down", "--dir", dir); !strings.Contains(out, "nothing to stop") {
		t.Errorf("second down says: %s", out)
	}
}

func runIn(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), args, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func succeed(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errOut := runIn(t, args...)
	if code != 0 {
		t.Fatalf("%q: exit code %d\n%s%s", args, code, out, errOut)
	}
	return out
}

func server(t *testing.T, kubeconfig string) string {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	return config.Host
}

func kill(t *testing.T, pidFile string) {
	t.Helper()
	content, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.Fields(string(content))[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
