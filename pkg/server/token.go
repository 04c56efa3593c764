package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync/atomic"

	"github.com/kube-rego/kube-rego/pkg/reload"
)

// TokenFile is a bearer token in a file that somebody else keeps. What stays in
// memory is its hash: that is all a comparison needs, and it is safe to print.
type TokenFile struct {
	file    string
	log     *slog.Logger
	current atomic.Pointer[[sha256.Size]byte]
}

// NewTokenFile reads the token; white space around it does not count. Run keeps
// it new.
func NewTokenFile(file string, log *slog.Logger) (*TokenFile, error) {
	t := &TokenFile{file: file, log: log}
	if _, err := t.reload(); err != nil {
		return nil, err
	}
	return t, nil
}

// Run reads the file again from time to time until ctx ends. One that is empty
// or gone changes nothing.
func (t *TokenFile) Run(ctx context.Context) {
	reload.Run(ctx, "token", t.file, t.reload, t.log)
}

func (t *TokenFile) reload() (changed bool, err error) {
	data, err := os.ReadFile(t.file)
	if err != nil {
		return false, fmt.Errorf("reading the token: %w", err)
	}
	token, err := parseToken(string(data))
	if err != nil {
		return false, fmt.Errorf("reading the token in %s: %w", t.file, err)
	}
	sum := sha256.Sum256([]byte(token))
	if old := t.current.Load(); old != nil && *old == sum {
		return false, nil
	}
	t.current.Store(&sum)
	return true, nil
}

// parseToken is the one word of a token's file. A header can carry no other.
func parseToken(text string) (string, error) {
	switch words := strings.Fields(text); len(words) {
	case 1:
		return words[0], nil
	case 0:
		return "", errors.New("the file is empty")
	}
	return "", errors.New("there is more than one word: a token has no white space in it")
}

// Require hands on what has the token, and GET /health: a kubelet that asks for
// it has no token. All else is answered with 401.
func (t *TokenFile) Require(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isHealthProbe(r) || t.accepts(r) {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", "Bearer")
		writeAPIError(w, http.StatusUnauthorized, codeUnauthorized, "the request needs the header Authorization: Bearer with the right token")
	})
}

func isHealthProbe(r *http.Request) bool {
	return r.Method == http.MethodGet && r.URL.Path == "/health"
}

// accepts compares hashes: so neither the time it takes nor its length tells how
// much of a token was right.
func (t *TokenFile) accepts(r *http.Request) bool {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") { // RFC 9110, 11.1
		return false
	}
	sum := sha256.Sum256([]byte(strings.TrimLeft(token, " ")))
	return subtle.ConstantTimeCompare(sum[:], t.current.Load()[:]) == 1
}
