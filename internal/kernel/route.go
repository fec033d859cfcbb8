package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Scope is how far away a route's destinations are (rtnetlink(7)). IPv6 has no
// scopes; there it is ignored.
type Scope uint8

// The scopes that netctl uses.
const (
	ScopeGlobal Scope = unix.RT_SCOPE_UNIVERSE
	ScopeLink   Scope = unix.RT_SCOPE_LINK
	ScopeHost   Scope = unix.RT_SCOPE_HOST
)

// Route is a route of the main table.
type Route struct {
	Dst     netip.Prefix
	Src     netip.Addr // preferred source; must be an address of this host
	Gateway netip.Addr
	Link    int // interface index
	MTU     int // 0: the interface's
	Scope   Scope
	Own     bool // read only: the route protocol is RouteProtocol
}

// ApplyRoutes makes netctl's routes on an interface of the caller's namespace
// exactly these. It is idempotent: what is right stays untouched, what is wrong
// is replaced in one step, what is ours and no longer wanted goes. Routes of
// others stay, also when one is in the way of a wanted route: then the error
// wraps ErrForeignRoute. Every route is tried; the errors are joined.
func ApplyRoutes(link int, want []Route) error {
	have, err := routesOf(link)
	if err != nil {
		return err
	}
	present := make(map[netip.Prefix]Route, len(have))
	for _, r := range have {
		if r.Own {
			present[r.Dst] = r
		}
	}
	var errs []error
	wanted := make(map[netip.Prefix]bool, len(want))
	for _, r := range want {
		r.Link, r.Own = link, true
		if err := r.check(); err != nil {
			errs = append(errs, err)
			continue
		}
		if wanted[r.Dst] {
			errs = append(errs, fmt.Errorf("route to %s: wanted twice", r.Dst))
			continue
		}
		wanted[r.Dst] = true
		old, ok := present[r.Dst]
		if ok && old.same(r) {
			continue
		}
		errs = append(errs, putRoute(r, ok))
	}
	for dst, r := range present {
		if !wanted[dst] {
			errs = append(errs, deleteRoute(r))
		}
	}
	return errors.Join(errs...)
}

func (r Route) check() error {
	switch {
	case !r.Dst.IsValid() || r.Dst != r.Dst.Masked():
		return fmt.Errorf("route to %s: not a network", r.Dst)
	case r.Src.IsValid() && r.Src.Is4() != r.Dst.Addr().Is4(), r.Gateway.IsValid() && r.Gateway.Is4() != r.Dst.Addr().Is4():
		return fmt.Errorf("route to %s: source %s or gateway %s of another family", r.Dst, r.Src, r.Gateway)
	default:
		return nil
	}
}

// same compares what the kernel keeps of a route.
func (r Route) same(o Route) bool {
	if r.Dst.Addr().Is6() {
		r.Scope, o.Scope = 0, 0
	}
	r.Own, o.Own = false, false
	return r == o
}

// putRoute adds a route, or replaces ours. A new route is never allowed to push
// away another one, which a plain replace would do.
func putRoute(r Route, replace bool) error {
	nr := r.netlink()
	if replace {
		if err := netlink.RouteReplace(nr); err != nil {
			return fmt.Errorf("replace route to %s: %w", r.Dst, err)
		}
		return nil
	}
	err := netlink.RouteAdd(nr)
	if !errors.Is(err, unix.EEXIST) {
		if err != nil {
			return fmt.Errorf("add route to %s: %w", r.Dst, err)
		}
		return nil
	}
	own, err := ownsRoute(r.Dst)
	if err != nil {
		return err
	}
	if !own {
		return fmt.Errorf("add route to %s: %w", r.Dst, ErrForeignRoute)
	}
	return putRoute(r, true)
}

// ownsRoute reports whether all routes to dst are ours, on whatever interface.
func ownsRoute(dst netip.Prefix) (bool, error) {
	routes, err := listRoutes(0, familyOf(dst.Addr()))
	if err != nil {
		return false, err
	}
	for _, r := range routes {
		if r.Dst == dst && !r.Own {
			return false, nil
		}
	}
	return true, nil
}

func deleteRoute(r Route) error {
	err := netlink.RouteDel(r.netlink())
	if err == nil || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return fmt.Errorf("remove route to %s: %w", r.Dst, err)
}

func (r Route) netlink() *netlink.Route {
	nr := &netlink.Route{
		LinkIndex: r.Link, Dst: ipNet(r.Dst), Protocol: unix.RTPROT_STATIC, MTU: r.MTU,
		Table: unix.RT_TABLE_MAIN, Family: familyOf(r.Dst.Addr()),
	}
	if r.Own {
		nr.Protocol = RouteProtocol
	}
	if r.Dst.Addr().Is4() {
		nr.Scope = netlink.Scope(r.Scope)
	}
	if r.Src.IsValid() {
		nr.Src = net.IP(r.Src.AsSlice())
	}
	if r.Gateway.IsValid() {
		nr.Gw = net.IP(r.Gateway.AsSlice())
	}
	return nr
}

// RemoveOwnRoutes removes netctl's routes of the caller's namespace, on whatever
// interface, and returns them.
func RemoveOwnRoutes() ([]Route, error) {
	all, err := routesOf(0)
	if err != nil {
		return nil, err
	}
	var removed []Route
	var errs []error
	for _, r := range all {
		if !r.Own {
			continue
		}
		if err := deleteRoute(r); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, r)
	}
	return removed, errors.Join(errs...)
}

// RouteGet asks the kernel which way a packet to dst would go from the caller's
// namespace. The error wraps ErrNoRoute when there is none.
func RouteGet(dst netip.Addr) (Route, error) {
	if !dst.IsValid() {
		return Route{}, fmt.Errorf("route to %s: not an address", dst)
	}
	routes, err := netlink.RouteGet(dst.AsSlice())
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || err == nil && len(routes) == 0 {
		return Route{}, fmt.Errorf("route to %s: %w", dst, ErrNoRoute)
	}
	if err != nil {
		return Route{}, fmt.Errorf("route to %s: %w", dst, err)
	}
	return routeOf(routes[0]), nil
}

func routesOf(link int) ([]Route, error) {
	v4, err := listRoutes(link, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	v6, err := listRoutes(link, netlink.FAMILY_V6)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, err
	}
	return append(v4, v6...), nil
}

// listRoutes returns the main table's unicast routes, of one interface or all.
func listRoutes(link, family int) ([]Route, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_MAIN, LinkIndex: link, Type: unix.RTN_UNICAST}
	mask := netlink.RT_FILTER_TABLE | netlink.RT_FILTER_TYPE
	if link != 0 {
		mask |= netlink.RT_FILTER_OIF
	}
	routes, err := retryDump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, filter, mask)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	out := make([]Route, 0, len(routes))
	for _, r := range routes {
		out = append(out, routeOf(r))
	}
	return out, nil
}

func routeOf(r netlink.Route) Route {
	dst := prefixOf(r.Dst)
	if !dst.IsValid() {
		dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Family == netlink.FAMILY_V6 {
			dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
	}
	return Route{
		Dst: dst, Src: addrOf(r.Src), Gateway: addrOf(r.Gw), Link: r.LinkIndex,
		MTU: r.MTU, Scope: Scope(r.Scope), Own: r.Protocol == RouteProtocol,
	}
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// Gateways returns the routers that the routes of the caller's namespace lead
// by way of, sorted and once each.
func Gateways() ([]netip.Addr, error) {
	list, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []netip.Addr
	add := func(ip net.IP) {
		if a, ok := netip.AddrFromSlice(ip); ok && !a.IsUnspecified() {
			out = append(out, a.Unmap())
		}
	}
	for _, r := range list {
		add(r.Gw)
		for _, hop := range r.MultiPath {
			add(hop.Gw)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}
