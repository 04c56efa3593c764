package watch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/kube-rego/kube-rego/pkg/configmap"
)

// settleTime is how long after a change the files are read: an editor writes a
// file in several steps within a few milliseconds.
const settleTime = 50 * time.Millisecond

// lookInterval is how often the files are looked at without being told: a folder
// that was replaced by another of the same name is no longer watched by the
// operating system. Reading a hundred files takes milliseconds.
const lookInterval = 2 * time.Second

// FilesConfig is what Files needs.
type FilesConfig struct {
	// Paths are files, or folders of which all .yaml, .yml and .json files are
	// read, as kubectl apply -f does.
	Paths []string
	// Namespaces to take ConfigMaps of; metav1.NamespaceAll stands for all. An
	// object that names no namespace belongs to the first.
	Namespaces []string
	// Selectors pick ConfigMaps by their labels; one of them is enough.
	Selectors []labels.Selector
	// Log is told when the operating system loses track of changes.
	Log *slog.Logger
}

// Files watches the labelled ConfigMaps in files.
type Files struct {
	config   FilesConfig
	interval time.Duration // lookInterval; longer in tests of what events bring about

	mu sync.Mutex
	// last is what could be read, by file, of each path.
	last map[string]map[string][]*corev1.ConfigMap
}

// NewFiles reads the files once: what is broken at the start is an error.
func NewFiles(config FilesConfig) (*Files, error) {
	f := &Files{config: config, interval: lookInterval, last: make(map[string]map[string][]*corev1.ConfigMap)}
	if _, err := f.ConfigMaps(); err != nil {
		return nil, err
	}
	return f, nil
}

// History is empty: nothing is recorded of files.
func (f *Files) History() (*configmap.History, error) { return configmap.NewHistory(nil), nil }

// ConfigMaps are the labelled ConfigMaps of the files as they are now. Of a file
// or folder that is broken they are as they were before, and the error says what
// is wrong.
func (f *Files) ConfigMaps() ([]*corev1.ConfigMap, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	all := []*corev1.ConfigMap{}    // none is known to be none, also beside an error
	from := make(map[string]string) // the file of each ConfigMap
	for _, path := range f.config.Paths {
		errs = append(errs, f.read(path))
		for _, file := range slices.Sorted(maps.Keys(f.last[path])) {
			for _, cm := range f.last[path][file] {
				name := cm.Namespace + "/" + cm.Name
				if first, ok := from[name]; ok {
					errs = append(errs, fmt.Errorf("ConfigMap %s in %s is passed over: it is in %s already", name, file, first))
					continue
				}
				from[name] = file
				all = append(all, cm)
			}
		}
	}
	return all, errors.Join(errs...)
}

// read reads one path anew, and keeps what it read before of what is broken now.
func (f *Files) read(path string) error {
	files, err := Expand(path, ManifestExtensions()...)
	if err != nil {
		return err
	}
	var errs []error
	now := make(map[string][]*corev1.ConfigMap, len(files))
	for _, file := range files {
		configMaps, err := f.readFile(file)
		if err != nil {
			configMaps = f.last[path][file]
		}
		if !errors.Is(err, errEmpty) {
			errs = append(errs, err)
		}
		now[file] = configMaps
	}
	f.last[path] = now
	return errors.Join(errs...)
}

// Run watches the files until ctx ends and calls look after every change.
func (f *Files) Run(ctx context.Context, look func()) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching files: %w", err)
	}
	defer func() { _ = watcher.Close() }()
	regularly := time.NewTicker(f.interval)
	defer regularly.Stop()
	f.follow(watcher)
	look()                     // for edits made between the first reading and now
	var quiet <-chan time.Time // set while a change waits for its look
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Events:
			if quiet == nil {
				quiet = time.After(settleTime)
			}
		case err := <-watcher.Errors:
			f.config.Log.Warn("watching files failed; looking again", "error", err)
			look()
		case <-quiet:
			quiet = nil
			look()
		case <-regularly.C:
			f.follow(watcher)
			look()
		}
	}
}

// follow asks the operating system for events of all paths, also of those that
// were replaced. Of what is not there now a look tells, and the next call tries
// again.
func (f *Files) follow(watcher *fsnotify.Watcher) {
	for _, path := range f.config.Paths {
		_ = watcher.Add(folder(path))
	}
}

// folder is what is watched for path: an editor replaces a file by another of
// the same name, and the folder sees both.
func folder(path string) string {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return path
	}
	return filepath.Dir(path)
}

// errEmpty is the state of a file that somebody has just begun to write: what
// was in it before stays until there is more to read.
var errEmpty = errors.New("the file is empty")

// readFile reads the ConfigMaps of one file that are policies. Objects of other
// kinds are somebody else's.
func (f *Files) readFile(file string) ([]*corev1.ConfigMap, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // deleted since the folder was read
	}
	if err != nil {
		return nil, fmt.Errorf("reading manifests: %w", err)
	}
	if len(data) == 0 {
		return nil, errEmpty
	}
	var configMaps []*corev1.ConfigMap
	err = ReadManifests(data, func(m Manifest) error {
		cm, err := m.ConfigMap()
		if cm != nil && f.wants(cm) {
			configMaps = append(configMaps, cm)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading %s, %w", file, err)
	}
	return configMaps, nil
}

// wants reports whether cm is a policy of a watched namespace. It gives a
// namespace to what has none.
func (f *Files) wants(cm *corev1.ConfigMap) bool {
	all := slices.Contains(f.config.Namespaces, metav1.NamespaceAll)
	if cm.Namespace == "" {
		cm.Namespace = f.config.Namespaces[0]
		if all {
			cm.Namespace = metav1.NamespaceDefault
		}
	}
	return (all || slices.Contains(f.config.Namespaces, cm.Namespace)) &&
		slices.ContainsFunc(f.config.Selectors, func(s labels.Selector) bool { return s.Matches(labels.Set(cm.Labels)) })
}
