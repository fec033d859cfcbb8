package apiserver_test

import (
	"encoding/pem"
	"testing"

	"github.com/netctl/netctl/internal/cluster/apiserver"
)

func TestIdentity(t *testing.T) {
	t.Parallel()
	cert := func(text string) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(text)}))
	}
	a, b := cert("a"), cert("b")
	id := func(bundle string) string { return apiserver.Identity([]byte(bundle)) }
	for name, same := range map[string]bool{
		"twice":         id(a) == id(a+"\n"+a),
		"another order": id(a+b) == id(b+a),
		"a comment":     id(a) == id("# the cluster's\n"+a),
		"another one":   id(a) != id(b),
		"one more":      id(a) != id(a+b),
		"none":          id(a) != id(""),
	} {
		if !same {
			t.Errorf("%s: identity is wrong", name)
		}
	}
}
