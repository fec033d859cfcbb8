package cluster_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

func TestBlockPools(t *testing.T) {
	t.Parallel()
	const head = "apiVersion: netctl.io/v1alpha1\nkind: BlockPool\nmetadata:\n  name: default\nspec:\n  ranges:\n"
	tests := []struct {
		name, ranges string
		want         []model.BlockPool
		problem      string
	}{
		{
			name:   "both families",
			ranges: "  - {cidr: \"fd00:10::/64\", blockSize: 112}\n  - {cidr: 10.192.0.0/10, blockSize: 25}\n",
			want: []model.BlockPool{
				{CIDR: netip.MustParsePrefix("10.192.0.0/10"), Bits: 25},
				{CIDR: netip.MustParsePrefix("fd00:10::/64"), Bits: 112},
			},
		},
		{name: "not a range", ranges: "  - {cidr: ten, blockSize: 25}\n", problem: `spec.ranges[0].cidr: "ten" is not an address range`},
		{name: "host bits", ranges: "  - {cidr: 10.0.0.1/8, blockSize: 25}\n", problem: "has bits beyond its mask"},
		{name: "blocks larger than the range", ranges: "  - {cidr: 10.0.0.0/16, blockSize: 8}\n", problem: "cannot be cut into blocks of /8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "pool.yaml"), []byte(head+tt.ranges), 0o600); err != nil {
				t.Fatal(err)
			}
			state, problems, err := cluster.Read(dir)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(state.BlockPools, tt.want, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("pools differ (-got +want):\n%s", diff)
			}
			if tt.problem == "" && len(problems) > 0 {
				t.Errorf("problems: %v", problems)
			}
			if tt.problem != "" && (len(problems) != 1 || !strings.Contains(problems[0].Text, tt.problem)) {
				t.Errorf("problems %v, want one with %q", problems, tt.problem)
			}
		})
	}
}
