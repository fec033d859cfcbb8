package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is an interface as it was found.
type Link struct {
	Index      int
	Name       string
	Kind       string // "tun", "veth", "bridge", …; "" for the loopback
	MTU        int
	TxQueueLen int
	GSOMaxSize int
	Up         bool // administratively
	Carrier    bool // for a TUN: somebody holds its descriptor
	Master     int  // index of the bridge that it is a port of, or 0
	Addresses  []netip.Prefix
	Routes     []Route // of the main table, those of other programs included
}

// Describe returns what is known of the interface with that name. The error
// wraps ErrNotFound when there is none.
func Describe(ns *Namespace, name string) (Link, error) {
	var out Link
	err := ns.Do(func() error {
		link, err := linkByName(name)
		if err != nil {
			return err
		}
		out = linkFacts(link)
		if out.Addresses, err = addressesOf(out.Index); err != nil {
			return err
		}
		out.Routes, err = routesOf(out.Index)
		return err
	})
	if err != nil {
		return Link{}, fmt.Errorf("describe %q: %w", name, err)
	}
	return out, nil
}

// Interfaces returns the namespace's interfaces by index, without their
// addresses and routes.
func Interfaces(ns *Namespace) ([]Link, error) {
	var out []Link
	err := ns.Do(func() error {
		links, err := retryDump(netlink.LinkList)
		for _, l := range links {
			out = append(out, linkFacts(l))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return out, nil
}

// DescribeAll returns what is known of every interface of the caller's namespace.
func DescribeAll() ([]Link, error) {
	links, err := Interfaces(nil)
	if err != nil {
		return nil, err
	}
	out := make([]Link, 0, len(links))
	for _, l := range links {
		l, err := Describe(nil, l.Name)
		if errors.Is(err, ErrNotFound) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// DefaultLink returns the interface by which the caller's namespace reaches the
// rest of the world, without its addresses and routes. The error wraps ErrNoRoute
// when there is none.
func DefaultLink() (Link, error) {
	links, err := Interfaces(nil)
	if err != nil {
		return Link{}, err
	}
	for _, far := range []string{"192.88.99.1", "2001:db8:ffff::1"} {
		rt, err := RouteGet(netip.MustParseAddr(far))
		if err != nil {
			continue
		}
		for _, l := range links {
			if l.Index == rt.Link {
				return l, nil
			}
		}
	}
	return Link{}, fmt.Errorf("look for the default route: %w", ErrNoRoute)
}

// DeleteInterface removes an interface, and succeeds when there is none.
func DeleteInterface(ns *Namespace, name string) error {
	return ns.Do(func() error {
		link, err := linkByName(name)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete interface %q: %w", name, err)
		}
		return nil
	})
}

func linkFacts(link netlink.Link) Link {
	a := link.Attrs()
	kind := link.Type()
	switch kind {
	case "device":
		kind = ""
	case "tuntap":
		kind = "tun"
	}
	return Link{
		Index: a.Index, Name: a.Name, Kind: kind, MTU: a.MTU, TxQueueLen: a.TxQLen,
		GSOMaxSize: int(a.GSOMaxSize),
		Up:         a.Flags&net.FlagUp != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0,
		Master: a.MasterIndex,
	}
}

// linkByIndex names a link to netlink without asking the kernel for it.
func linkByIndex(index int) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

// linkByName looks at the thread's namespace. It compares the name, because the
// kernel's look-up also takes alternative names.
func linkByName(name string) (netlink.Link, error) {
	if name == "" || len(name) > ifNameMax || strings.ContainsAny(name, "/ \t\n") {
		return nil, fmt.Errorf("bad interface name %q: %w", name, ErrNotFound)
	}
	link, err := netlink.LinkByName(name)
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) || err == nil && link.Attrs().Name != name {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("look up interface: %w", err)
	}
	return link, nil
}

// checkFree reports whether a name can be given to an interface.
func checkFree(name string) error {
	_, err := linkByName(name)
	switch {
	case err == nil:
		return ErrExists
	case errors.Is(err, ErrNotFound):
		return nil
	default:
		return err
	}
}

func addressesOf(index int) ([]netip.Prefix, error) {
	var link netlink.Link
	if index != 0 {
		link = linkByIndex(index)
	}
	addrs, err := retryDump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := make([]netip.Prefix, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, prefixOf(a.IPNet))
	}
	return out, nil
}

// dumpTries is how often a listing that the kernel reports as inconsistent is
// taken again; each further one is less likely to be hit.
const dumpTries = 5

// retryDump takes a listing again when something changed in its middle.
func retryDump[T any](list func() ([]T, error)) ([]T, error) {
	var out []T
	var err error
	for range dumpTries {
		out, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return out, err
		}
	}
	return out, err
}

func existsErr(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return ErrExists
	}
	return err
}

// ipNet turns a prefix into the form of the netlink library.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf is the reverse of ipNet; an invalid one gives the zero Prefix.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if !ok || size == 0 {
		return netip.Prefix{}
	}
	if size == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, bits)
}

// addrOf turns an address of the netlink library into ours.
func addrOf(ip net.IP) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}
