package deploy_test

import (
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/deploy"
)

var update = flag.Bool("update", false, "write deploy/netctl.yaml anew")

// TestManifestIsTheChart: deploy/netctl.yaml is what the chart renders with its
// defaults.
func TestManifestIsTheChart(t *testing.T) {
	t.Parallel()
	docs, err := deploy.Render(deploy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	got := string(deploy.YAML(docs))
	if *update {
		if err := os.WriteFile("netctl.yaml", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("netctl.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("deploy/netctl.yaml is not what the chart renders; go test ./deploy -update writes it (-file +chart):\n%s", diff)
	}
}
