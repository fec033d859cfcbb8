package kernel

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What tests do to a namespace besides, to see how the rest takes it.

// Sysctl reads a setting of the namespace, such as "net/ipv4/ip_forward".
func Sysctl(ns *Namespace, key string) (string, error) {
	var out string
	err := ns.Do(func() (err error) {
		out, err = sysctl(key)
		return err
	})
	return out, err
}

// SetSysctl writes a setting of the namespace.
func SetSysctl(ns *Namespace, key, value string) error {
	return ns.Do(func() error { return setSysctl(key, value) })
}

// DeleteAddress removes an address, and succeeds when it is not there.
func DeleteAddress(ns *Namespace, name string, p netip.Prefix) error {
	return withLink(ns, name, func(link netlink.Link) error {
		err := netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)})
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil
		}
		return err
	})
}

// SetDown brings an interface down; IPv6 addresses and routes go with that.
func SetDown(ns *Namespace, name string) error {
	return withLink(ns, name, netlink.LinkSetDown)
}
