package overview

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return now.Add(-d) }

func TestOverviewText(t *testing.T) {
	syntax := policy.Problem{Code: "rego_parse_error", Message: "unexpected eof token", Row: 3, Col: 15}
	for _, test := range []struct {
		name     string
		overview Overview
		want     string
	}{
		{
			name: "a table of all, and the replicas",
			overview: Overview{
				ConfigMaps: []ConfigMap{
					{Namespace: "opa", Name: "main", Status: "ok", InForce: policy.Current, Revision: 2, Recorded: ago(3 * time.Hour)},
					{Namespace: "opa", Name: "new", Status: "none", InForce: policy.None},
					{Namespace: "team-a", Name: "rules", Status: "unknown", Revision: 11, Recorded: ago(40 * 24 * time.Hour)},
				},
				Replicas: []Replica{{Identity: "a", Fingerprint: "0123456789abcdef"}},
			},
			want: `NAMESPACE   NAME    STATUS     IN-FORCE   REVISION   AGE
opa         main    ok         current    2          3h
opa         new     none yet   none       -          -
team-a      rules   unknown    -          11         40d

replicas: 1 live, 1 with the same policies in force (0123456789ab)
`,
		},
		{
			name: "each problem with its line and a caret, tabs included, and what else there is to say",
			overview: Overview{
				ConfigMaps: []ConfigMap{
					{
						Namespace: "opa", Name: "rules", Status: "error", InForce: policy.Previous, Revision: 1, Recorded: ago(time.Minute),
						Message: "12, of which the first 10 are shown",
						Problems: []Problem{
							{"opa/rules/main", syntax.In("package a\n\ndeny contains \"x\" if {\n")},
							{"opa/rules/tabs", policy.Problem{Code: "c", Message: "m\n\tn", Row: 1, Col: 3}.In("\tx :=")},
							{"opa/rules/gone", policy.Problem{Code: "rego_type_error", Message: "deleting the module breaks the rest"}},
						},
					},
				},
				Warnings: []string{"replicas are not shown: forbidden"},
			},
			want: `NAMESPACE   NAME    STATUS   IN-FORCE   REVISION   AGE
opa         rules   error    previous   1          60s

opa/rules/main:3:15: rego_parse_error: unexpected eof token
    deny contains "x" if {
                  ^

opa/rules/tabs:1:3: c: m  n
    	x :=
    	 ^

opa/rules/gone: rego_type_error: deleting the module breaks the rest

opa/rules: 12, of which the first 10 are shown

replicas are not shown: forbidden
`,
		},
		{
			name:     "no policies at all",
			overview: Overview{ConfigMaps: []ConfigMap{}, Replicas: []Replica{}, Warnings: []string{"there is no ConfigMap with the label a=b in namespace opa"}},
			want: `there is no ConfigMap with the label a=b in namespace opa

replicas: none is live in the namespace of kube-rego (--kube-rego-namespace)
`,
		},
		{
			name: "escape sequences of others reach no terminal, and the caret stays where it was",
			overview: Overview{
				ConfigMaps: []ConfigMap{{
					Namespace: "opa", Name: "rules", Status: "error", InForce: policy.None, Message: "a\x1b[2Jb",
					Problems: []Problem{{"opa/rules/\x1b]0;x\a", policy.Problem{Code: "\u009b31m", Message: "m\r\nn\u202e", Row: 1, Col: 7}.In("x\x1b[1m\u200b := y")}},
				}},
				Replicas: []Replica{{Identity: "\x1bc", Fingerprint: "\x1b", Gone: true, Renewed: ago(time.Minute)}, {Identity: "b", Fingerprint: "\x07"}},
				Warnings: []string{"w\x1b"},
			},
			want: "NAMESPACE   NAME    STATUS   IN-FORCE   REVISION   AGE\n" +
				"opa         rules   error    none       -          -\n\n" +
				"opa/rules/\ufffd]0;x\ufffd:1:7: \ufffd31m: m n\ufffd\n" +
				"    x\ufffd[1m\ufffd := y\n" +
				"          ^\n\n" +
				"opa/rules: a\ufffd[2Jb\n\n" +
				"w\ufffd\n\n" +
				"replicas: 1 live, 1 with the same policies in force (\ufffd)\n" +
				"replica \ufffdc is gone: not heard of for 60s\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.overview.Text(now); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

func TestReplicaLines(t *testing.T) {
	live := func(name, fingerprint string) Replica {
		return Replica{Identity: name, Fingerprint: fingerprint, Renewed: ago(0)}
	}
	gone := Replica{Identity: "z", Gone: true, Fingerprint: "old", Renewed: ago(40 * time.Second)}
	for _, test := range []struct {
		name     string
		replicas []Replica
		want     string
	}{
		{"all agree", []Replica{live("a", "one"), live("b", "one")}, "replicas: 2 live, 2 with the same policies in force (one)\n"},
		{
			"one lags, and one is gone that is not counted",
			[]Replica{live("a", "two"), live("b", "one"), live("c", "two"), gone},
			"replicas: 3 live, 2 with the same policies in force (two)\n" +
				"replica b has others in force (one)\n" +
				"replica z is gone: not heard of for 40s\n",
		},
		{
			"of two that disagree the same is named whatever the order",
			[]Replica{live("a", "two"), live("b", "one")},
			"replicas: 2 live, 1 with the same policies in force (one)\nreplica a has others in force (two)\n",
		},
		{
			"all are gone",
			[]Replica{gone},
			"replicas: none is live in the namespace of kube-rego (--kube-rego-namespace)\nreplica z is gone: not heard of for 40s\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := replicaLines(test.replicas, now); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

func TestHistoryText(t *testing.T) {
	broken := Problem{"opa/rules/main", policy.Problem{Code: "c", Message: "m\x1b\nn", Row: 1, Col: 2}}
	h := History{
		Revisions: []Revision{
			{Number: 12, Recorded: ago(time.Minute), Keys: []string{"a", "b", "c", "d", "e"}, Fingerprint: "0123456789abcdef", InForce: true},
			{Number: 11, Recorded: ago(2 * time.Hour), Keys: []string{"a", "b"}, Fingerprint: "fedcba9876543210", Problems: []Problem{broken, broken}},
			{Number: 10, Recorded: ago(3 * time.Hour), Fingerprint: "aaaaaaaaaaaaaaaa"},
			{Number: 9, Recorded: ago(4 * time.Hour), Error: "no JSON\t!"},
		},
		Warnings: []string{"w"},
	}
	const want = "REVISION   RECORDED   KEYS             FINGERPRINT    STATE\n" +
		"12         60s        a,b,c + 2 more   0123456789ab   in force\n" +
		"11         120m       a,b              fedcba987654   does not compile: opa/rules/main:1:2: c: m\ufffd n\n" +
		"10         3h         -                aaaaaaaaaaaa\n" +
		"9          4h         -                -              cannot be read: no JSON !\n" +
		"\n" +
		"w\n"
	if got := h.Text(now); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	both := Revision{InForce: true, Problems: []Problem{broken}}
	if got, want := both.state(), "in force; does not compile: "+broken.String(); got != want {
		t.Errorf("what is in force and does not compile here: got %q, want %q", got, want)
	}
	if got, want := (History{Warnings: []string{"nothing"}}).Text(now), "nothing\n"; got != want {
		t.Errorf("without revisions: got %q, want %q", got, want)
	}
}

func TestSourceText(t *testing.T) {
	revision := func(keysAndSources ...string) configmap.Revision {
		set := make(policy.Set)
		for n := 0; n < len(keysAndSources); n += 2 {
			id := policy.ID{Namespace: "opa", Name: "rules", Key: keysAndSources[n]}
			set[id] = policy.Module{ID: id, Source: keysAndSources[n+1]}
		}
		return configmap.NewRevision("opa", "opa", "rules", 3, set)
	}
	for _, test := range []struct {
		name     string
		revision configmap.Revision
		want     string
		exact    bool
	}{
		{"one key", revision("main", "package a\n\n\tx := 1\n"), "# opa/rules/main, revision 3\npackage a\n\n\tx := 1\n", true},
		{
			"several keys in order, each ending in a line end",
			revision("b", "package b", "a", "package a\n", "c", ""),
			"# opa/rules/a, revision 3\npackage a\n\n# opa/rules/b, revision 3\npackage b\n\n# opa/rules/c, revision 3\n", true,
		},
		{"line ends of Windows are no danger", revision("main", "package a\r\nx := 1\r\n"), "# opa/rules/main, revision 3\npackage a\r\nx := 1\r\n", true},
		{"a line that would be overwritten is not", revision("main", "evil\rgood\n\x1b[2J"), "# opa/rules/main, revision 3\nevil\ufffdgood\n\ufffd[2J\n", false},
		{"nothing was in force", revision(), "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, exact := sourceText(test.revision)
			if got != test.want || exact != test.exact {
				t.Errorf("got %q, exact %t\nwant %q, %t", got, exact, test.want, test.exact)
			}
		})
	}
}

func TestEncodeEscapesWhatATerminalWouldActOn(t *testing.T) {
	const text = "<a> \x1b[2J \u009b \x7f \u202e \U000e0041 \n ü"
	got, err := encode(map[string]string{"k": text})
	if err != nil {
		t.Fatal(err)
	}
	const want = "{\n  \"k\": \"<a> \\u001b[2J \\u009b \\u007f \\u202e \\udb40\\udc41 \\n ü\"\n}\n"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	var back map[string]string
	if err := json.Unmarshal([]byte(got), &back); err != nil || back["k"] != text {
		t.Errorf("it comes back as %q, error %v", back["k"], err)
	}
}

// The names of the fields are a promise.
func TestJSON(t *testing.T) {
	recorded := time.Date(2026, 3, 1, 11, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name  string
		value any
		want  string
	}{
		{"nothing at all", Overview{ConfigMaps: []ConfigMap{}}, `{
  "configMaps": [],
  "replicas": null
}
`},
		{"everything", Overview{
			ConfigMaps: []ConfigMap{
				{Namespace: "opa", Name: "new", Status: "none", InForce: policy.None},
				{
					Namespace: "opa", Name: "rules", Status: "error", InForce: policy.Previous, Revision: 2, Recorded: recorded, Message: "m",
					Problems: []Problem{{"opa/rules/main", policy.Problem{Code: "c", Message: "m", Row: 1, Col: 2}.In("x y")}},
				},
			},
			Replicas: []Replica{{Identity: "a", Renewed: recorded, Fingerprint: "f"}},
			Warnings: []string{"w"},
		}, `{
  "configMaps": [
    {
      "namespace": "opa",
      "name": "new",
      "status": "none",
      "inForce": "none"
    },
    {
      "namespace": "opa",
      "name": "rules",
      "status": "error",
      "inForce": "previous",
      "revision": 2,
      "recorded": "2026-03-01T11:00:00Z",
      "message": "m",
      "problems": [
        {
          "module": "opa/rules/main",
          "code": "c",
          "message": "m",
          "row": 1,
          "col": 2,
          "source": "x y",
          "caret": " ^"
        }
      ]
    }
  ],
  "replicas": [
    {
      "identity": "a",
      "gone": false,
      "renewed": "2026-03-01T11:00:00Z",
      "fingerprint": "f"
    }
  ],
  "warnings": [
    "w"
  ]
}
`},
		{"a history", History{Namespace: "opa", Name: "rules", Revisions: []Revision{
			{Number: 2, Recorded: recorded, Keys: []string{"main"}, Fingerprint: "f", InForce: true},
			{Number: 1, Recorded: recorded, Error: "e"},
		}}, `{
  "namespace": "opa",
  "name": "rules",
  "revisions": [
    {
      "revision": 2,
      "recorded": "2026-03-01T11:00:00Z",
      "keys": [
        "main"
      ],
      "fingerprint": "f",
      "inForce": true
    },
    {
      "revision": 1,
      "recorded": "2026-03-01T11:00:00Z",
      "error": "e",
      "inForce": false
    }
  ]
}
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := encode(test.value)
			if err != nil || got != test.want {
				t.Errorf("got %s and error %v\nwant %s", got, err, test.want)
			}
		})
	}
}
