package certs

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// newClientCA reads CAs from a file with this text.
func newClientCA(t *testing.T, text []byte) (*ClientCA, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.crt")
	write(t, file, text)
	c, err := NewClientCA(file, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return c, file
}

// poolOf is the pool of the bundles' CAs.
func poolOf(bundles ...Bundle) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, b := range bundles {
		pool.AppendCertsFromPEM(b.CA)
	}
	return pool
}

func TestClientCAReload(t *testing.T) {
	first, second := newTestBundle(t), newTestBundle(t)
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no certificate")})
	for _, test := range []struct {
		name    string
		edit    func(t *testing.T, file string)
		changed bool
		want    string // part of the error
		pool    *x509.CertPool
	}{
		{
			name: "a file that did not change is left alone", pool: poolOf(first),
			edit: func(*testing.T, string) {},
		},
		{
			name: "another CA takes the place of the first", changed: true, pool: poolOf(second),
			edit: func(t *testing.T, file string) { write(t, file, second.CA) },
		},
		{
			name: "a CA that is added is trusted beside the first", changed: true, pool: poolOf(first, second),
			edit: func(t *testing.T, file string) { write(t, file, slices.Concat(first.CA, second.CA)) },
		},
		{
			name: "text and keys around the certificates do not matter", changed: true, pool: poolOf(first, second),
			edit: func(t *testing.T, file string) {
				write(t, file, slices.Concat([]byte("# old\n"), first.CA, first.CAKey, []byte("# new\n"), second.CA, []byte("# end\n")))
			},
		},
		{
			name: "an empty file changes nothing", want: "there is no certificate in PEM", pool: poolOf(first),
			edit: func(t *testing.T, file string) { write(t, file, nil) },
		},
		{
			name: "a file with a key alone changes nothing", want: "there is no certificate in PEM", pool: poolOf(first),
			edit: func(t *testing.T, file string) { write(t, file, second.CAKey) },
		},
		{
			name: "half of the second certificate changes nothing", want: "of 2 certificates 1 are broken or cut off", pool: poolOf(first),
			edit: func(t *testing.T, file string) {
				write(t, file, slices.Concat(first.CA, second.CA[:len(second.CA)/2]))
			},
		},
		{
			name: "a hole in the first certificate changes nothing", want: "of 2 certificates 1 are broken or cut off", pool: poolOf(first),
			edit: func(t *testing.T, file string) {
				write(t, file, slices.Concat(bytes.Replace(first.CA, []byte("\nM"), []byte("\n!"), 1), second.CA))
			},
		},
		{
			name: "what is no certificate changes nothing", want: "certificate 2: ", pool: poolOf(first),
			edit: func(t *testing.T, file string) { write(t, file, slices.Concat(second.CA, broken)) },
		},
		{
			name: "a file that is gone changes nothing", want: "reading the client CA: ", pool: poolOf(first),
			edit: remove,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, file := newClientCA(t, first.CA)
			test.edit(t, file)
			changed, err := c.reload()
			if changed != test.changed {
				t.Errorf("changed is %v, want %v", changed, test.changed)
			}
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), file)):
				t.Errorf("got the error %v, want %q and the name of the file", err, test.want)
			}
			if !c.Pool().Equal(test.pool) {
				t.Error("other CAs are trusted")
			}
		})
	}
}

func TestNewClientCAOfABadFile(t *testing.T) {
	for _, test := range []struct {
		name string
		text []byte // nil: there is no file
		want string
	}{
		{name: "no file", want: "reading the client CA: "},
		{name: "an empty file", text: []byte{}, want: "there is no certificate in PEM"},
		{name: "a file of something else", text: []byte("apiVersion: v1\n"), want: "there is no certificate in PEM"},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "ca.crt")
			if test.text != nil {
				write(t, file, test.text)
			}
			c, err := NewClientCA(file, slog.New(slog.DiscardHandler))
			if c != nil || err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), file) {
				t.Errorf("got the error %v, want %q and the name of the file", err, test.want)
			}
		})
	}
}

// The time of this test is not the real one.
func TestRunReadsTheFileAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newTestBundle(t), newTestBundle(t)
		file := filepath.Join(t.TempDir(), "ca.crt")
		write(t, file, first.CA)
		var lines bytes.Buffer
		c, err := NewClientCA(file, slog.New(slog.NewTextHandler(&lines, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() { c.Run(ctx); close(stopped) }()
		for _, step := range []struct {
			text []byte
			pool *x509.CertPool
			log  string
		}{
			{text: first.CA, pool: poolOf(first)},
			{text: nil, pool: poolOf(first), log: "level=ERROR msg=\"a file cannot be reloaded; what it held before stays in use\" what=\"client CA\" file=" + file},
			{text: second.CA, pool: poolOf(second), log: "level=INFO msg=\"file reloaded\" what=\"client CA\" file=" + file},
		} {
			lines.Reset()
			write(t, file, step.text)
			time.Sleep(time.Minute)
			synctest.Wait()
			if !c.Pool().Equal(step.pool) {
				t.Error("other CAs are trusted")
			}
			if got := lines.String(); !strings.Contains(got, step.log) || (step.log == "") != (got == "") {
				t.Errorf("the log says %q, want %q", got, step.log)
			}
		}
		cancel()
		<-stopped
	})
}
