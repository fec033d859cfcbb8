package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenNone = 1

// Interface is how a TUN shall look in its namespace.
type Interface struct {
	Name string
	// MTU, TxQueueLen and GSOMaxSize are left as they are when 0.
	MTU        int
	TxQueueLen int
	GSOMaxSize int
	// Addresses are added without duplicate address detection. IPv6 is
	// touched only when one of them is IPv6.
	Addresses []netip.Prefix
	// Routes are all that the interface has of ours: Configure takes others away,
	// also when there are none here. See DefaultRoutes.
	Routes []Route
	// Persist makes the TUN persistent as the very last step.
	Persist bool
	// OnOptional, unless nil, is told what could not be set and is not
	// needed, such as accept_ra on a read-only /proc/sys.
	OnOptional func(error)
}

func (c *Interface) optional(err error) {
	if err != nil && c.OnOptional != nil {
		c.OnOptional(err)
	}
}

// has6 reports whether the interface shall have IPv6 addresses.
func (c *Interface) has6() bool {
	for _, p := range c.Addresses {
		if p.Addr().Is6() {
			return true
		}
	}
	return false
}

// DefaultRoutes returns the routes of a pod with these addresses: everything
// goes straight out of the interface, in the families that it has.
func DefaultRoutes(addrs []netip.Prefix) []Route {
	var v4, v6 bool
	for _, p := range addrs {
		v4 = v4 || p.Addr().Is4()
		v6 = v6 || p.Addr().Is6()
	}
	var out []Route
	if v4 {
		out = append(out, Route{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Scope: ScopeLink})
	}
	if v6 {
		out = append(out, Route{Dst: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Scope: ScopeLink})
	}
	return out
}

// CreateTUNIn makes a TUN in ns that looks as cfg says from the beginning, up and
// routed. Making it there instead of moving it there saves the kernel's grace
// periods of a move and of a renaming, which are most of what a pod's interface
// costs; the price is that the descriptor keeps the namespace alive (see
// PinsNamespace). The error wraps ErrExists when ns has an interface of that
// name, which is not disturbed. A failure leaves nothing behind.
func CreateTUNIn(ns *Namespace, cfg Interface, want Offloads) (*TUN, error) {
	if ns == nil {
		return nil, fmt.Errorf("create TUN %q: no namespace given", cfg.Name)
	}
	var t *TUN
	err := ns.Do(func() error {
		var err error
		// cfg's own limits are set with the rest of it.
		if t, err = CreateTUN(TUNConfig{Name: cfg.Name, Offloads: want}); err != nil {
			return err
		}
		if t.name != cfg.Name { // it was empty or a pattern
			return errors.Join(fmt.Errorf("create TUN %q: bad interface name", cfg.Name), t.Destroy())
		}
		if err := t.configure(&cfg); err != nil {
			return errors.Join(fmt.Errorf("configure TUN %q: %w", cfg.Name, err), t.Destroy())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// MoveInto takes the TUN from the caller's namespace into ns and makes it as
// cfg says, up and routed. When ns has an interface of that name the error
// wraps ErrExists, nothing is disturbed there, and the TUN is destroyed as
// after every other failure: nothing is left behind.
func (t *TUN) MoveInto(ns *Namespace, cfg Interface) error {
	err := t.moveInto(ns, &cfg)
	if err != nil {
		return errors.Join(fmt.Errorf("move TUN %q to %q: %w", t.name, cfg.Name, err), t.Destroy())
	}
	return nil
}

func (t *TUN) moveInto(ns *Namespace, cfg *Interface) error {
	if ns == nil {
		return errors.New("no namespace given")
	}
	err := ns.Do(func() error { return checkFree(cfg.Name) })
	if err != nil {
		return err
	}
	if err := netlink.LinkSetNsFd(linkByIndex(t.index), ns.FD()); err != nil {
		return fmt.Errorf("change namespace: %w", existsErr(err))
	}
	return ns.Do(func() error {
		// The index may have been taken here, and the kernel chose another.
		link, err := linkByName(t.name)
		if err != nil {
			return err
		}
		index := link.Attrs().Index
		if err := netlink.LinkSetName(linkByIndex(index), cfg.Name); err != nil {
			return fmt.Errorf("rename: %w", existsErr(err))
		}
		t.name, t.index = cfg.Name, index
		if err := t.findPin(ns); err != nil {
			return err
		}
		return t.configure(cfg)
	})
}

// Configure makes the TUN, which is in the caller's namespace, as cfg says. It
// is idempotent: what is there already stays, addresses that are not wanted go.
// The name must be the TUN's own. Use it for netctl0 and after re-attaching.
func (t *TUN) Configure(cfg Interface) error {
	if cfg.Name != t.name {
		return fmt.Errorf("configure TUN %q as %q: renaming is not supported", t.name, cfg.Name)
	}
	if err := t.configure(&cfg); err != nil {
		return fmt.Errorf("configure %q: %w", t.name, err)
	}
	return nil
}

// configure runs in the TUN's namespace.
func (t *TUN) configure(cfg *Interface) error {
	link := linkByIndex(t.index)
	if err := setLimits(link, cfg); err != nil {
		return err
	}
	if err := prepare6(cfg, t.index); err != nil {
		return err
	}
	if err := applyAddresses(t.index, cfg.Addresses); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	if err := ApplyRoutes(t.index, cfg.Routes); err != nil {
		return err
	}
	if cfg.Persist && !t.persist {
		return t.SetPersist()
	}
	return nil
}

func setLimits(link netlink.Link, cfg *Interface) error {
	if cfg.MTU > 0 {
		if err := netlink.LinkSetMTU(link, cfg.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", cfg.MTU, err)
		}
	}
	if cfg.TxQueueLen > 0 {
		if err := netlink.LinkSetTxQLen(link, cfg.TxQueueLen); err != nil {
			return fmt.Errorf("set queue length %d: %w", cfg.TxQueueLen, err)
		}
	}
	if cfg.GSOMaxSize > 0 {
		if err := netlink.LinkSetGSOMaxSize(link, cfg.GSOMaxSize); err != nil {
			return fmt.Errorf("set GSO size %d: %w", cfg.GSOMaxSize, err)
		}
	}
	return nil
}

// prepare6 makes the interface ready for IPv6 before it comes up: without
// addr_gen_mode none a link-local address appears and router solicitations go
// out; with disable_ipv6 no address can be added; a pod listens to no router
// advertisements but ours.
func prepare6(cfg *Interface, index int) error {
	err := netlink.LinkSetIP6AddrGenMode(linkByIndex(index), addrGenNone)
	if err != nil && cfg.has6() {
		return fmt.Errorf("set addr_gen_mode: %w", err)
	}
	if !cfg.has6() {
		return nil
	}
	conf := "net/ipv6/conf/" + cfg.Name + "/"
	if err := setSysctl(conf+"disable_ipv6", "0"); err != nil {
		return fmt.Errorf("IPv6 addresses need IPv6 switched on: %w", err)
	}
	cfg.optional(setSysctl(conf+"accept_ra", "0"))
	return nil
}

// applyAddresses makes the interface's addresses exactly these, link-local ones
// of the kernel's own making aside.
func applyAddresses(index int, want []netip.Prefix) error {
	have, err := addressesOf(index)
	if err != nil {
		return err
	}
	link := linkByIndex(index)
	wanted := make(map[netip.Prefix]bool, len(want))
	for _, p := range want {
		wanted[p] = true
	}
	present := make(map[netip.Prefix]bool, len(have))
	for _, p := range have {
		present[p] = true
		if wanted[p] || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if err := netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", p, err)
		}
	}
	for _, p := range want {
		if present[p] {
			continue
		}
		if err := addAddress(link, p); err != nil {
			return err
		}
	}
	return nil
}

func addAddress(link netlink.Link, p netip.Prefix) error {
	if !p.IsValid() {
		return errors.New("add address: not a valid prefix")
	}
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s: %w", p, err)
	}
	return nil
}

// SetQueueLen sets how many packets wait in the TUN for its reader.
func (t *TUN) SetQueueLen(n int) error {
	ns, err := t.Namespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error { return setLimits(linkByIndex(t.index), &Interface{TxQueueLen: n}) })
}
