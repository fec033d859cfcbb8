package rivals

import (
	"errors"
	"fmt"
	"net/netip"
)

// Veth is three namespaces, client, router and server, as a CNI plugin makes them
// that leaves forwarding to the kernel.
func Veth() (*Path, error) {
	paths, err := Veths(1)
	if err != nil {
		return nil, err
	}
	return paths[0], nil
}

// Veths is so many clients and servers around one router. The first path's Close
// takes all of it down.
func Veths(pairs int) ([]*Path, error) {
	router := Prefix + "router"
	names, lines := []string{router}, []string(nil)
	var paths []*Path
	for i := range pairs {
		p := &Path{Close: nothing}
		for j, role := range []string{"client", "server"} {
			pod, wire, net := fmt.Sprintf("%s%s%d", Prefix, role, i), fmt.Sprintf("%c%d", role[0], i), fmt.Sprintf("10.9.%d", 2*i+j+1)
			names = append(names, pod)
			lines = append(lines,
				"link add eth0 netns "+pod+" type veth peer name "+wire+" netns "+router,
				"-n "+pod+" address add "+net+".2/24 dev eth0", "-n "+router+" address add "+net+".1/24 dev "+wire,
				"-n "+pod+" link set eth0 up", "-n "+router+" link set "+wire+" up",
				"-n "+pod+" route add default via "+net+".1")
			if role == "client" {
				p.From = pod
				continue
			}
			var err error
			if p.Addr, err = netip.ParseAddr(net + ".2"); err != nil {
				return nil, fmt.Errorf("%d pairs: %w", pairs, err)
			}
			p.To = pod
		}
		paths = append(paths, p)
	}
	remove, err := Namespaces(names...)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(forwarding(router), ip(lines...)); err != nil {
		return nil, errors.Join(err, remove())
	}
	paths[0].Close = remove
	return paths, nil
}
