// Package offload finds out whether the offloads that the kernel grants a TUN work:
// it passes super-packets through one, in a namespace that nobody else is in, both
// ways, and compares every byte.
//
//	sockets in the namespace ── TUN ── peer.go, which answers by hand
//
// First an ordinary packet goes, so that a super-packet that does not come is known
// to be the kernel's doing and not a slow machine's.
package offload

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/netctl/netctl/internal/kernel"
)

// Result is what was found.
type Result struct {
	// Works is what may be used.
	Works kernel.Offloads
	// Why says what was tested, or what is wrong with the rest.
	Why string
}

// ErrNotTested means that nothing is known: the test itself was not possible.
var ErrNotTested = errors.New("TUN offloads could not be tested")

// What the kernel may do wrong.
var (
	errChecksum = errors.New("checksums do not work")
	errTSO      = errors.New("TCP super-packets do not work")
	errUSO      = errors.New("UDP super-packets do not work")
)

// link is a TUN, or in tests one that is broken.
type link interface {
	Read(buf []byte) (int, error)
	Write(buf []byte) (int, error)
	FD() int
}

// The addresses of the two ends (RFC 5737, RFC 3849).
//
//nolint:gochecknoglobals // constants
var (
	near = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	far  = [2]netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}
)

const (
	device  = "offload0"
	testMTU = 1420
)

// Test passes packets through a TUN. The error wraps ErrNotTested.
func Test() (Result, error) { return test(func(t *kernel.TUN) link { return t }) }

func test(through func(*kernel.TUN) link) (Result, error) {
	ns, err := kernel.PrivateNamespace()
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrNotTested, err)
	}
	defer ns.Close()
	want := kernel.AllOffloads()
	var why []string
	for {
		granted, err := try(ns, want, through)
		switch {
		case err == nil:
			if len(why) == 0 {
				why = append(why, "tested")
			}
			return Result{Works: granted, Why: strings.Join(why, "; ")}, nil
		case errors.Is(err, errUSO):
			want.USO = false
		case errors.Is(err, errTSO):
			want.TSO = false
		case errors.Is(err, errChecksum):
			return Result{Why: strings.Join(append(why, err.Error()), "; ")}, nil
		default:
			return Result{}, fmt.Errorf("%w: %w", ErrNotTested, err)
		}
		why = append(why, err.Error())
	}
}

// try tests what is wanted as far as the kernel grants it.
func try(ns *kernel.Namespace, want kernel.Offloads, through func(*kernel.TUN) link) (granted kernel.Offloads, err error) {
	addrs := []netip.Prefix{netip.PrefixFrom(near[0], 32), netip.PrefixFrom(near[1], 128)}
	families := 2
	tun, err := create(ns, addrs, want)
	if err != nil { // perhaps there is no IPv6 here
		families = 1
		if tun, err = create(ns, addrs[:1], want); err != nil {
			return want, err
		}
	}
	defer func() { err = errors.Join(err, tun.Destroy()) }()
	granted = tun.Offloads()
	p, err := newPeer(ns, through(tun))
	if err != nil {
		return granted, err
	}
	defer p.close()
	for family := range families {
		if err := p.datagrams(family, granted.USO); err != nil {
			return granted, fmt.Errorf("from %s: %w", near[family], err)
		}
		if err := p.stream(family, granted.TSO); err != nil {
			return granted, fmt.Errorf("from %s: %w", near[family], err)
		}
	}
	return granted, nil
}

func create(ns *kernel.Namespace, addrs []netip.Prefix, want kernel.Offloads) (*kernel.TUN, error) {
	return kernel.CreateTUNIn(ns, kernel.Interface{
		Name: device, MTU: testMTU, Addresses: addrs, Routes: kernel.DefaultRoutes(addrs),
	}, want)
}
