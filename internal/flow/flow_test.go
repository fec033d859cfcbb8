package flow_test

import (
	"testing"

	"github.com/netctl/netctl/internal/flow"
)

func open(t testing.TB, c flow.Config) *flow.Table {
	t.Helper()
	tab, err := flow.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}
