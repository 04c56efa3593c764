package server_test

import (
	"fmt"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/server"
)

func TestRefusalsAreTheLatest(t *testing.T) {
	for _, test := range []struct {
		name         string
		added        int
		newest, last string // names in the list
		listed       int
	}{
		{name: "none", added: 0},
		{name: "one", added: 1, listed: 1, newest: "0", last: "0"},
		{name: "as many as are remembered", added: 100, listed: 100, newest: "99", last: "0"},
		{name: "one more", added: 101, listed: 100, newest: "100", last: "1"},
		{name: "more than twice as many", added: 250, listed: 100, newest: "249", last: "150"},
	} {
		t.Run(test.name, func(t *testing.T) {
			refusals := server.NewRefusals()
			for n := range test.added {
				refusals.Add(server.Refusal{Name: fmt.Sprint(n)})
			}
			list := refusals.List()
			if len(list) != test.listed {
				t.Fatalf("%d are listed, want %d", len(list), test.listed)
			}
			if test.listed == 0 {
				return
			}
			if newest, last := list[0].Name, list[len(list)-1].Name; newest != test.newest || last != test.last {
				t.Errorf("they go from %s to %s, want %s to %s", newest, last, test.newest, test.last)
			}
			list[0].Name = "changed by the reader"
			if got := refusals.List()[0].Name; got != test.newest {
				t.Errorf("the list is not a copy: the newest is %s", got)
			}
		})
	}
}
