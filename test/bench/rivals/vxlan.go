package rivals

import (
	"net/netip"
	"strconv"
)

// overheads of the tunnels over IPv4, in bytes.
const (
	vxlanOverhead     = 50
	wireguardOverhead = 80 // as netctl leaves, and wireguard-go's 1420 of 1500
)

// VXLAN gives the pods of two sites a second interface each, routed by their nodes'
// kernels into a VXLAN between the nodes' addresses. It goes with the lab.
func VXLAN(sites [2]Site, underlay int) (*Path, error) {
	mtu := strconv.Itoa(underlay - vxlanOverhead)
	for i, site := range sites {
		far := sites[1-i]
		k, o := strconv.Itoa(i+1), strconv.Itoa(2-i)
		if err := forwarding(site.Node); err != nil {
			return nil, err
		}
		err := ip(
			"-n "+site.Node+" link add vx mtu "+mtu+" type vxlan id 8 local "+site.Addr.String()+" remote "+far.Addr.String()+" dstport 4789",
			"-n "+site.Node+" address add 10.8.0."+k+"/24 dev vx",
			"-n "+site.Node+" link set vx up")
		if err == nil {
			err = leg(site, "vx", "10.8", k, mtu)
		}
		if err == nil {
			err = ip("-n " + site.Node + " route add 10.8." + o + ".0/24 via 10.8.0." + o)
		}
		if err != nil {
			return nil, err
		}
	}
	return &Path{From: sites[0].Pod, To: sites[1].Pod, Addr: netip.MustParseAddr("10.8.2.2"), Close: nothing}, nil
}

// leg is the veth pair between a site's pod and its node: NET.K.2 and NET.K.1. What
// the pod sends to NET.0.0/16 goes there.
func leg(site Site, name, net, k, mtu string) error {
	return ip(
		"link add "+name+"0 mtu "+mtu+" netns "+site.Pod+" type veth peer name "+name+"p mtu "+mtu+" netns "+site.Node,
		"-n "+site.Pod+" address add "+net+"."+k+".2/24 dev "+name+"0",
		"-n "+site.Node+" address add "+net+"."+k+".1/24 dev "+name+"p",
		"-n "+site.Pod+" link set "+name+"0 up", "-n "+site.Node+" link set "+name+"p up",
		"-n "+site.Pod+" route add "+net+".0.0/16 via "+net+"."+k+".1")
}
