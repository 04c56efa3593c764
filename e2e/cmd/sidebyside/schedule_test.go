package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestTheLongestComeFirst(t *testing.T) {
	listed := "TestA\nBenchmarkB\nTestC\n" + strings.Join(longest, "\n") + "\nok  \tpackage\t0.1s\n"
	names, err := order(listed, true)
	want := slices.Concat(longest, []string{"TestA", "TestC"})
	if err != nil || !slices.Equal(names, want) {
		t.Errorf("the order is %v, %v; want %v", names, err, want)
	}
	if names, err := order("TestC\nTestA\n", false); err != nil || !slices.Equal(names, []string{"TestC", "TestA"}) {
		t.Errorf("the order of some is %v, %v", names, err)
	}
	if _, err := order("TestA\n", true); err == nil || !strings.Contains(err.Error(), "there is no "+longest[len(longest)-1]) {
		t.Errorf("one of the longest is gone, and the error is %v", err)
	}
	if _, err := order("ok  \tpackage\t0.1s\n", false); err == nil {
		t.Error("there are no tests, and no error")
	}
}

func TestAFailureIsShownWithItsOutput(t *testing.T) {
	var out strings.Builder
	r := newReport(&out)
	for _, name := range []string{"TestGood", "TestBad"} {
		r.begin(name)
	}
	r.end("TestGood", "what it logged", 0, nil)
	r.end("TestBad", "why it failed\n", 0, errors.New("exit status 1"))
	err := r.finish()
	if err == nil || err.Error() != "failed: TestBad" {
		t.Errorf("the error is %v", err)
	}
	for _, want := range []string{"  TestGood\n", "  TestBad: exit status 1\nwhy it failed\n", "2 done in "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not show %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "what it logged") {
		t.Errorf("it shows what a good test has logged:\n%s", out.String())
	}
}
