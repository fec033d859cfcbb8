package rivals

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// The virtual address and the first node port of KubeProxy's Service.
const (
	vip = "10.96.0.10"
	// NodePortOffset is what is added to a port for the node port of a Service.
	NodePortOffset = 23000
)

// ServicePort is a port of the Service.
type ServicePort struct {
	Port     uint16
	Protocol string
}

// KubeProxy is Veth's three namespaces with the rules in the router that
// kube-proxy's nftables mode (v1.37) writes for one Service of type NodePort with one
// endpoint, the server. The rules are written out here, since kube-proxy itself would
// need an API server: the chains, maps and their order are those of a node that it
// has set up, without the chains that nothing of this traffic reaches.
//
// The first path leads to the Service's virtual address, the second, from a fourth
// namespace outside, to its node port.
func KubeProxy(ports []ServicePort) (inside, outside *Path, err error) {
	p, err := Veth()
	if err != nil {
		return nil, nil, err
	}
	out := Prefix + "outside"
	remove, err := Namespaces(out)
	if err == nil {
		both := func() error { return errors.Join(remove(), p.Close()) }
		err = errors.Join(
			ip("link add eth0 netns "+out+" type veth peer name o netns "+Prefix+"router",
				"-n "+out+" address add 10.10.1.2/24 dev eth0", "-n "+Prefix+"router address add 10.10.1.1/24 dev o",
				"-n "+out+" link set eth0 up", "-n "+Prefix+"router link set o up"),
			in(Prefix+"router", rules(ports), "nft", "-f", "-"))
		if err == nil {
			inside = &Path{From: p.From, To: p.To, Addr: netip.MustParseAddr(vip), Close: both}
			outside = &Path{From: out, To: p.To, Addr: netip.MustParseAddr("10.10.1.1"), Close: nothing}
			return inside, outside, nil
		}
		err = errors.Join(err, remove())
	}
	return nil, nil, errors.Join(err, p.Close())
}

// rules are what `nft list ruleset` shows on such a node.
func rules(ports []ServicePort) string {
	var ips, nodePorts, chains strings.Builder
	for _, p := range ports {
		id := fmt.Sprintf("AAAAAAAA-bench/server/%s/p%d", p.Protocol, p.Port)
		fmt.Fprintf(&ips, "%s . %s . %d : goto service-%s,\n", vip, p.Protocol, p.Port, quote(id))
		fmt.Fprintf(&nodePorts, "%s . %d : goto external-%s,\n", p.Protocol, p.Port+NodePortOffset, quote(id))
		fmt.Fprintf(&chains, `
	chain endpoint-%[1]s__10.9.2.2/%[3]d {
		ip saddr 10.9.2.2 jump mark-for-masquerade
		meta l4proto %[2]s dnat to 10.9.2.2:%[3]d
	}
	chain service-%[1]s {
		ip daddr %[4]s %[2]s dport %[3]d ip saddr != 10.9.0.0/16 jump mark-for-masquerade
		numgen random mod 1 vmap { 0 : goto endpoint-%[1]s__10.9.2.2/%[3]d }
	}
	chain external-%[1]s {
		jump mark-for-masquerade
		goto service-%[1]s
	}
`, quote(id), p.Protocol, p.Port, vip)
	}
	return strings.NewReplacer("CHAINS", chains.String(), "IPS", ips.String(), "NODEPORTS", nodePorts.String()).Replace(table)
}

// quote makes a name that nft takes without quotes.
func quote(id string) string { return strings.NewReplacer("/", "_").Replace(id) }

const table = `table ip kube-proxy {
	set cluster-ips { type ipv4_addr; elements = { ` + vip + ` } }
	set nodeport-ips { type ipv4_addr; elements = { 10.10.1.1 } }
	map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
	map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
	map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	map service-nodeports { type inet_proto . inet_service : verdict; }
	chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
	chain masquerading {
		meta mark & 0x4000 == 0x0 return
		meta mark set meta mark xor 0x4000
		masquerade fully-random
	}
	chain cluster-ips-check {
		ip daddr @cluster-ips reject
	}
	chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
	chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
	chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
CHAINS
	chain services {
		ip daddr . meta l4proto . th dport vmap @service-ips
		ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
	}
	chain filter-prerouting { type filter hook prerouting priority -110; ct state new jump firewall-check; }
	chain filter-input {
		type filter hook input priority -110
		ct state new jump nodeport-endpoints-check
		ct state new jump service-endpoints-check
	}
	chain filter-forward {
		type filter hook forward priority -110
		ct state new jump service-endpoints-check
		ct state new jump cluster-ips-check
	}
	chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
	chain nat-output { type nat hook output priority -100; jump services; }
	chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
}
add element ip kube-proxy service-ips {
IPS }
add element ip kube-proxy service-nodeports {
NODEPORTS }
`
