package configmap

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// The label by which our own objects are found: revisions, and the Leases of
// replicas.
const (
	ManagedByLabel = "app.kubernetes.io/managed-by"
	ManagedBy      = "kube-rego"
)

const (
	// maxPlainBytes is how large the data of a revision may be in plain JSON, in
	// which people can read it. JSON writes some characters as six, and etcd
	// takes 1.5 MiB (its default max-request-bytes), so larger ones are packed.
	maxPlainBytes = 1 << 20
	// maxUnpackedBytes is the most that a packed revision may unpack to: six
	// times the 1 MiB that a ConfigMap may hold (MaxSecretSize in
	// k8s.io/kubernetes/pkg/apis/core), and a margin.
	maxUnpackedBytes = 8 << 20
	// maxNameBytes leaves room for a number in the 253 that a name may have.
	maxNameBytes = 230
)

// Revision is what was in force of one ConfigMap at one time. It is kept as a
// ControllerRevision, which nobody can change once it is there.
type Revision struct {
	// Namespace and Name are those of the ConfigMap.
	Namespace, Name string
	// Home is the namespace of the object that keeps the revision: our own, also
	// for the ConfigMaps of other namespaces.
	Home string
	// Number counts the revisions of a ConfigMap from 1.
	Number int64
	// ObjectName is the name of the object that keeps the revision.
	ObjectName string
	// Recorded is when the revision was written; zero for one that is not yet.
	Recorded time.Time
	// Order says which of two revisions was written first: the resource version of the
	// object, which etcd counts up with each write. Zero for one that is not written yet.
	Order uint64
	// Modules were in force; none is also something to remember.
	Modules policy.Set
	// Fingerprint is that of the modules.
	Fingerprint string
}

// NewRevision makes the revision of a ConfigMap with these modules in force, to be
// kept in the namespace home.
func NewRevision(home, namespace, name string, number int64, modules policy.Set) Revision {
	r := Revision{
		Namespace:   namespace,
		Name:        name,
		Home:        home,
		Number:      number,
		Modules:     modules,
		Fingerprint: modules.Fingerprint(),
	}
	if namespace != home {
		name = namespace + "." + name
	}
	r.ObjectName = objectName(name, number)
	return r
}

func objectName(name string, number int64) string {
	if len(name) > maxNameBytes {
		hash := sha256.Sum256([]byte(name))
		name = strings.TrimRight(name[:maxNameBytes-17], ".-") + "-" + hex.EncodeToString(hash[:8])
	}
	return fmt.Sprintf("%s-%d", name, number)
}

// revisionData is the data of the object. Modules are in one of the two forms.
type revisionData struct {
	// Namespace is that of the ConfigMap where it is not that of the object.
	Namespace string                    `json:"namespace,omitempty"`
	ConfigMap string                    `json:"configMap"`
	Modules   map[string]revisionModule `json:"modules,omitempty"`
	// Packed is the JSON of Modules in gzip.
	Packed []byte `json:"packed,omitempty"`
}

type revisionModule struct {
	Kind          policy.Kind        `json:"kind,omitempty"`
	Source        string             `json:"source"`
	RegoVersion   policy.RegoVersion `json:"regoVersion,omitempty"`
	Created       metav1.Time        `json:"created"`
	ObjectVersion uint64             `json:"objectVersion,string"`
}

// Object is the revision as an object of the cluster.
func (r Revision) Object() (*appsv1.ControllerRevision, error) {
	data := revisionData{ConfigMap: r.Name, Modules: make(map[string]revisionModule, len(r.Modules))}
	if r.Namespace != r.Home {
		data.Namespace = r.Namespace
	}
	for id, m := range r.Modules {
		data.Modules[id.Key] = revisionModule{
			Kind:          m.Kind,
			Source:        m.Source,
			RegoVersion:   m.Version,
			Created:       metav1.NewTime(m.Created),
			ObjectVersion: m.ObjectVersion,
		}
	}
	raw, err := encodeData(data)
	if err != nil {
		return nil, fmt.Errorf("encoding revision %d of ConfigMap %s/%s: %w", r.Number, r.Namespace, r.Name, err)
	}
	return &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.Home,
			Name:      r.ObjectName,
			Labels:    map[string]string{ManagedByLabel: ManagedBy},
		},
		Revision: r.Number,
		Data:     runtime.RawExtension{Raw: raw},
	}, nil
}

func encodeData(data revisionData) ([]byte, error) {
	plain, err := marshal(data)
	if err != nil || len(plain) <= maxPlainBytes {
		return plain, err
	}
	modules, err := marshal(data.Modules)
	if err != nil {
		return nil, err
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err = w.Write(modules)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	data.Modules, data.Packed = nil, packed.Bytes()
	return marshal(data)
}

// marshal is json.Marshal without the escapes that are for HTML: people read it.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimRight(b.Bytes(), "\n"), err
}

// ParseRevision reads the revision that an object keeps.
func ParseRevision(object *appsv1.ControllerRevision) (Revision, error) {
	r := Revision{
		Namespace:  object.Namespace,
		Home:       object.Namespace,
		Number:     object.Revision,
		ObjectName: object.Name,
		Recorded:   object.CreationTimestamp.Time,
		Order:      ObjectVersion(object),
		Modules:    make(policy.Set),
	}
	var data revisionData
	err := json.Unmarshal(object.Data.Raw, &data)
	if err == nil && len(data.Packed) > 0 {
		data.Modules, err = unpack(data.Packed)
	}
	if err == nil && data.ConfigMap == "" {
		err = errors.New("it does not say of which ConfigMap")
	}
	if err != nil {
		return Revision{}, fmt.Errorf("reading revision %s/%s: %w", object.Namespace, object.Name, err)
	}
	r.Name = data.ConfigMap
	if data.Namespace != "" {
		r.Namespace = data.Namespace
	}
	for key, m := range data.Modules {
		id := policy.ID{Namespace: r.Namespace, Name: r.Name, Key: key}
		r.Modules[id] = policy.Module{
			ID:            id,
			Kind:          m.Kind,
			Source:        m.Source,
			Version:       m.RegoVersion,
			Created:       m.Created.Time,
			ObjectVersion: m.ObjectVersion,
		}
	}
	r.Fingerprint = r.Modules.Fingerprint()
	return r, nil
}

func unpack(packed []byte) (map[string]revisionModule, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxUnpackedBytes))
	if err != nil {
		return nil, err
	}
	var modules map[string]revisionModule
	return modules, json.Unmarshal(plain, &modules)
}
