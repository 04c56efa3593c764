package certs

import (
	"bytes"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pairFiles are the two files of a Files.
type pairFiles struct{ cert, key string }

func newPairFiles(t *testing.T) pairFiles {
	dir := t.TempDir()
	return pairFiles{cert: filepath.Join(dir, "tls.crt"), key: filepath.Join(dir, "tls.key")}
}

func write(t *testing.T, file string, data []byte) {
	t.Helper()
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func newTestBundle(t *testing.T) Bundle {
	t.Helper()
	b, err := NewBundle([]string{"localhost"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// newFiles serves the bundle from files.
func newFiles(t *testing.T, b Bundle) (*Files, pairFiles) {
	t.Helper()
	files := newPairFiles(t)
	write(t, files.cert, b.Cert)
	write(t, files.key, b.Key)
	f, err := NewFiles(files.cert, files.key, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return f, files
}

// serves fails the test unless f serves the bundle's certificate.
func serves(t *testing.T, f *Files, b Bundle) {
	t.Helper()
	want, err := tls.X509KeyPair(b.Cert, b.Key)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.Certificate().Certificate[0], want.Certificate[0]) {
		t.Error("another certificate is served")
	}
}

func TestFilesReload(t *testing.T) {
	first, second := newTestBundle(t), newTestBundle(t)
	for _, test := range []struct {
		name    string
		edit    func(*testing.T, pairFiles)
		changed bool
		want    string // part of the error
		serves  Bundle
	}{
		{
			name: "files that did not change are left alone", serves: first,
			edit: func(*testing.T, pairFiles) {},
		},
		{
			name: "files that were only written anew are left alone", serves: first,
			edit: func(t *testing.T, files pairFiles) { write(t, files.cert, first.Cert) },
		},
		{
			name: "a new pair is served", changed: true, serves: second,
			edit: func(t *testing.T, files pairFiles) {
				write(t, files.cert, second.Cert)
				write(t, files.key, second.Key)
			},
		},
		{
			name: "a new certificate without its key changes nothing", serves: first,
			want: "private key does not match public key",
			edit: func(t *testing.T, files pairFiles) { write(t, files.cert, second.Cert) },
		},
		{
			name: "a new key without its certificate changes nothing", serves: first,
			want: "private key does not match public key",
			edit: func(t *testing.T, files pairFiles) { write(t, files.key, second.Key) },
		},
		{
			name: "half a certificate changes nothing", serves: first,
			want: "failed to find any PEM data",
			edit: func(t *testing.T, files pairFiles) { write(t, files.cert, second.Cert[:len(second.Cert)/2]) },
		},
		{
			name: "a certificate that is gone changes nothing", serves: first,
			want: "reading the serving certificate",
			edit: func(t *testing.T, files pairFiles) { remove(t, files.cert) },
		},
		{
			name: "a key that is gone changes nothing", serves: first,
			want: "reading the serving key",
			edit: func(t *testing.T, files pairFiles) { remove(t, files.key) },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, files := newFiles(t, first)
			test.edit(t, files)
			changed, err := f.reload()
			if changed != test.changed {
				t.Errorf("changed is %v, want %v", changed, test.changed)
			}
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got the error %v, want %q", err, test.want)
			}
			serves(t, f, test.serves)
		})
	}
}

func TestFilesHealAfterHalfAPair(t *testing.T) {
	first, second := newTestBundle(t), newTestBundle(t)
	f, files := newFiles(t, first)
	write(t, files.cert, second.Cert)
	if _, err := f.reload(); err == nil {
		t.Fatal("half a pair was taken")
	}
	write(t, files.key, second.Key)
	if changed, err := f.reload(); err != nil || !changed {
		t.Fatalf("got %v, %v, want the new pair", changed, err)
	}
	serves(t, f, second)
}

func TestNewFilesOfMissingFiles(t *testing.T) {
	b := newTestBundle(t)
	for _, test := range []struct {
		name, missing string
		file          func(pairFiles) string
	}{
		{name: "no certificate", missing: "reading the serving certificate: ", file: func(files pairFiles) string { return files.cert }},
		{name: "no key", missing: "reading the serving key: ", file: func(files pairFiles) string { return files.key }},
	} {
		t.Run(test.name, func(t *testing.T) {
			files := newPairFiles(t)
			write(t, files.cert, b.Cert)
			write(t, files.key, b.Key)
			missing := test.file(files)
			remove(t, missing)
			_, err := NewFiles(files.cert, files.key, slog.New(slog.DiscardHandler))
			if err == nil || !strings.HasPrefix(err.Error(), test.missing) || !strings.Contains(err.Error(), missing) {
				t.Errorf("got the error %v, want %q and the name of the file", err, test.missing)
			}
		})
	}
}

func remove(t *testing.T, file string) {
	t.Helper()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}
