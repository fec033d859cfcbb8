package rivals

import (
	"errors"
	"net/netip"
)

// Veth is three namespaces, client, router and server, as a CNI plugin makes them
// that leaves forwarding to the kernel.
func Veth() (*Path, error) {
	c, r, s := Prefix+"client", Prefix+"router", Prefix+"server"
	remove, err := Namespaces(c, r, s)
	if err != nil {
		return nil, err
	}
	err = errors.Join(forwarding(r), ip(
		"link add eth0 netns "+c+" type veth peer name c netns "+r,
		"link add eth0 netns "+s+" type veth peer name s netns "+r,
		"-n "+c+" address add 10.9.1.2/24 dev eth0", "-n "+r+" address add 10.9.1.1/24 dev c",
		"-n "+s+" address add 10.9.2.2/24 dev eth0", "-n "+r+" address add 10.9.2.1/24 dev s",
		"-n "+c+" link set eth0 up", "-n "+s+" link set eth0 up", "-n "+r+" link set c up", "-n "+r+" link set s up",
		"-n "+c+" route add default via 10.9.1.1", "-n "+s+" route add default via 10.9.2.1"))
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	return &Path{From: c, To: s, Addr: netip.MustParseAddr("10.9.2.2"), Close: remove}, nil
}
