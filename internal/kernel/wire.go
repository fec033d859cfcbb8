package kernel

import (
	"fmt"
	"net/netip"
	"runtime"

	"github.com/vishvananda/netlink"
)

// CreateVeth makes a pair of interfaces joined by a wire, one end in each
// namespace. Both are down. The error wraps ErrExists when a name is taken.
func CreateVeth(nameA string, nsA *Namespace, nameB string, nsB *Namespace) error {
	if nsB == nil {
		here, err := CurrentNamespace()
		if err != nil {
			return err
		}
		defer here.Close()
		nsB = here
	}
	return nsA.Do(func() error {
		veth := netlink.NewVeth(netlink.NewLinkAttrs())
		veth.Name, veth.PeerName, veth.PeerNamespace = nameA, nameB, netlink.NsFd(nsB.FD())
		err := netlink.LinkAdd(veth)
		runtime.KeepAlive(nsB)
		if err != nil {
			return fmt.Errorf("create veth %q - %q: %w", nameA, nameB, existsErr(err))
		}
		return nil
	})
}

// CreateBridge makes a bridge without spanning tree; it is down.
func CreateBridge(ns *Namespace, name string) error {
	return ns.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("create bridge %q: %w", name, existsErr(err))
		}
		return nil
	})
}

// SetMaster makes an interface a port of a bridge in the same namespace.
func SetMaster(ns *Namespace, name, bridge string) error {
	return withLink(ns, name, func(link netlink.Link) error {
		master, err := linkByName(bridge)
		if err != nil {
			return fmt.Errorf("bridge %q: %w", bridge, err)
		}
		return netlink.LinkSetMaster(link, master)
	})
}

// AddAddress adds an address without duplicate address detection, and succeeds
// when it is there already.
func AddAddress(ns *Namespace, name string, p netip.Prefix) error {
	return withLink(ns, name, func(link netlink.Link) error { return addAddress(link, p) })
}

// AddRoute adds or replaces one route over the named interface, as an
// administrator would ("proto static"): ApplyRoutes leaves it alone.
func AddRoute(ns *Namespace, name string, r Route) error {
	return withLink(ns, name, func(link netlink.Link) error {
		r.Link, r.Own = link.Attrs().Index, false
		if err := r.check(); err != nil {
			return err
		}
		return putRoute(r, true)
	})
}

// SetMTU changes an interface's MTU.
func SetMTU(ns *Namespace, name string, mtu int) error {
	return withLink(ns, name, func(link netlink.Link) error { return netlink.LinkSetMTU(link, mtu) })
}

// SetUp brings an interface up.
func SetUp(ns *Namespace, name string) error {
	return withLink(ns, name, netlink.LinkSetUp)
}

// SetLoopbackUp brings lo up, with 127.0.0.1 and ::1.
func SetLoopbackUp(ns *Namespace) error { return SetUp(ns, "lo") }

// withLink runs fn on an interface, inside its namespace.
func withLink(ns *Namespace, name string, fn func(netlink.Link) error) error {
	err := ns.Do(func() error {
		link, err := linkByName(name)
		if err != nil {
			return err
		}
		return fn(link)
	})
	if err != nil {
		return fmt.Errorf("interface %q: %w", name, err)
	}
	return nil
}
