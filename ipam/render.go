package ipam

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Table returns a layout for people.
func (l Layout) Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d nodes, %d pods per node, %d services\n", l.Nodes, l.PodsPerNode, l.Services)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, f := range l.Families {
		n := f.Supernet.Addr().BitLen()
		fmt.Fprintf(w, "\n%s\tRANGE\tADDRESSES\tHOLDS\n", strings.ToUpper(family(f.Supernet.Addr())))
		fmt.Fprintf(w, "cluster\t%s\t%s\t\n", f.Supernet, count(hostBits(f.Supernet)))
		fmt.Fprintf(w, "services\t%s\t%s\tcluster DNS at %s\n", f.Services, count(hostBits(f.Services)), f.DNS)
		fmt.Fprintf(w, "pods\t%s\t%s\t%d blocks of /%d\n", f.Pods, count(hostBits(f.Pods)), f.Blocks, f.Block)
		fmt.Fprintf(w, "node block\t/%d\t%s\t%d pods\n", f.Block, count(n-f.Block), f.PerBlock)
		for _, hole := range holes(f.Free) {
			fmt.Fprintf(w, "free\t%s\t\t\n", hole)
		}
	}
	w.Flush() // into a strings.Builder, which does not fail
	return trimLines(b.String())
}

// holes writes adjacent ranges as one, from the first address to the last.
func holes(list []netip.Prefix) []string {
	var out []string
	for i := 0; i < len(list); {
		first, last := list[i].Addr(), lastAddr(list[i])
		for i++; i < len(list) && list[i].Addr() == last.Next(); i++ {
			last = lastAddr(list[i])
		}
		out = append(out, first.String()+" - "+last.String())
	}
	return out
}

// lastAddr returns the highest address of a range.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// trimLines removes the blanks that a table's empty cells leave.
func trimLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n")
}

// layoutJSON is what JSON prints; the names are an interface.
type layoutJSON struct {
	Nodes       int          `json:"nodes"`
	PodsPerNode int          `json:"podsPerNode"`
	Services    int          `json:"services"`
	Families    []familyJSON `json:"families"`
}

type familyJSON struct {
	Family      string         `json:"family"`
	ClusterCIDR netip.Prefix   `json:"clusterCIDR"`
	ServiceCIDR netip.Prefix   `json:"serviceCIDR"`
	PodCIDR     netip.Prefix   `json:"podCIDR"`
	BlockSize   int            `json:"blockSize"`
	Blocks      uint64         `json:"blocks"`
	PodsInBlock uint64         `json:"podsPerBlock"`
	ClusterDNS  netip.Addr     `json:"clusterDNS"`
	Free        []netip.Prefix `json:"free"`
}

// JSON returns a layout for machines.
func (l Layout) JSON() ([]byte, error) {
	out := layoutJSON{Nodes: l.Nodes, PodsPerNode: l.PodsPerNode, Services: l.Services, Families: []familyJSON{}}
	for _, f := range l.Families {
		free := f.Free
		if free == nil {
			free = []netip.Prefix{}
		}
		out.Families = append(out.Families, familyJSON{
			Family: family(f.Supernet.Addr()), ClusterCIDR: f.Supernet, ServiceCIDR: f.Services, PodCIDR: f.Pods,
			BlockSize: f.Block, Blocks: f.Blocks, PodsInBlock: f.PerBlock, ClusterDNS: f.DNS, Free: free,
		})
	}
	b, err := json.MarshalIndent(out, "", "  ")
	return append(b, '\n'), err
}

// Kubeadm returns the fragment of a kubeadm ClusterConfiguration that makes a
// cluster of this layout, with the controller manager handing a block to every
// node. Service ranges have to be there before kubeadm init.
func (l Layout) Kubeadm() string {
	var b strings.Builder
	b.WriteString("apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nnetworking:\n")
	fmt.Fprintf(&b, "  serviceSubnet: %s\n", join(l.ServiceCIDRs()))
	b.WriteString("  # Without podSubnet and the arguments below, netctl claims blocks by itself,\n")
	b.WriteString("  # and a node may have more than one.\n")
	var pods []netip.Prefix
	for _, p := range l.Pools() {
		pods = append(pods, p.CIDR)
	}
	fmt.Fprintf(&b, "  podSubnet: %s\n", join(pods))
	b.WriteString("controllerManager:\n  extraArgs:\n")
	for _, p := range l.Pools() {
		name := "node-cidr-mask-size"
		if len(l.Families) > 1 {
			name += "-" + strings.ToLower(family(p.CIDR.Addr()))
		}
		fmt.Fprintf(&b, "  - name: %s\n    value: %s\n", name, strconv.Quote(strconv.Itoa(p.Block)))
	}
	return b.String()
}

// Manifests returns the objects that make a layout real in a running cluster,
// as YAML: a ServiceCIDR with the service ranges and the pool of node blocks.
func (l Layout) Manifests() string {
	var b strings.Builder
	b.WriteString("apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata:\n  name: netctl\nspec:\n  cidrs:\n")
	for _, s := range l.ServiceCIDRs() {
		fmt.Fprintf(&b, "  - %s\n", strconv.Quote(s.String()))
	}
	b.WriteString("---\napiVersion: netctl.io/v1alpha1\nkind: BlockPool\nmetadata:\n  name: default\nspec:\n  ranges:\n")
	for _, p := range l.Pools() {
		fmt.Fprintf(&b, "  - cidr: %s\n    blockSize: %d\n", strconv.Quote(p.CIDR.String()), p.Block)
	}
	return b.String()
}

// join writes ranges with commas, as Kubernetes' flags have them.
func join(list []netip.Prefix) string {
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = p.String()
	}
	return strings.Join(out, ",")
}
