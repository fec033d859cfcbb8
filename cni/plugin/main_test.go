package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestLinksStandardLibraryOnly keeps the plugin's start-up cheap: Go runs the
// initialisation of every linked package before main.
func TestLinksStandardLibraryOnly(t *testing.T) {
	t.Parallel()
	own := map[string]bool{
		"github.com/netctl/netctl/cni/plugin": true, "github.com/netctl/netctl/cni/shim": true,
		"github.com/netctl/netctl/cni/wire": true, "github.com/netctl/netctl/cni/queue": true,
	}
	out, err := exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}} {{.Standard}}", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		path, standard, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case own[path]:
			seen++
		case standard != "true":
			t.Errorf("the plugin links %s, which is not of the standard library", path)
		case path == "net" || path == "regexp" || strings.HasPrefix(path, "net/") || strings.HasPrefix(path, "crypto/"):
			t.Errorf("the plugin links %s, which is more than it needs", path)
		}
	}
	if seen != len(own) {
		t.Errorf("%d of %d own packages seen", seen, len(own))
	}
}
