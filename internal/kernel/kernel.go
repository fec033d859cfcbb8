// Package kernel is the only door to Linux: TUN devices, network namespaces,
// netlink, epoll, file descriptors over unix sockets, sysctl and packet
// capture. Nobody else makes raw system calls or imports a netlink library,
// and no type of such a library appears in this package's API.
//
// Why one door: the rules of the kernel here are easy to get wrong and hard to
// see in review. A TUN opened inside a namespace pins it; attaching by name
// from the wrong namespace silently creates a device; File() on a socket makes
// it blocking for everybody; a thread that cannot return from a namespace must
// die. Each rule is kept, commented and tested in one place.
//
//	      host namespace                 pod namespace
//	agent ── fd ──┐
//	CreateTUN ──> tun "nctl%d" ── MoveInto ──> "eth0" 10.0.1.5/32
//	              (created here, so the fd     default dev eth0
//	               does not pin the pod's
//	               namespace)
//
// Invariants:
//   - "In the caller's namespace" means the calling thread's. Namespace.Do runs
//     a function on a locked thread inside another one; functions that take a
//     *Namespace accept nil for the caller's.
//   - TUN.Read, TUN.Write and Poller.Wait neither allocate nor lock. Everything
//     else is slow path and may take milliseconds.
//   - Deleting what is absent succeeds. Creating what exists is an error that
//     wraps ErrExists and disturbs nothing.
//   - Routes that this package makes carry the route protocol RouteProtocol;
//     others are never changed or removed.
//
// The tests use real devices in namespaces of their own; they need root (or
// root in a user namespace) and /dev/net/tun, and skip with a reason without.
package kernel

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

const (
	// VNetLen is the length of the virtio-net header before every packet of
	// a TUN (struct virtio_net_hdr, without num_buffers).
	VNetLen = 10

	// RouteProtocol marks the routes that netctl made ("proto 157" in ip
	// route). It is not taken in iproute2's rt_protos.
	RouteProtocol = 157

	// MaxFDs is how many descriptors fit into one message; the kernel's
	// SCM_MAX_FD.
	MaxFDs = 253

	tunPath = "/dev/net/tun"

	// ifNameMax is the longest name of an interface.
	ifNameMax = unix.IFNAMSIZ - 1
)

// HaveTUN reports why TUN devices cannot be made here, or nil. It makes one
// and removes it again, because opening /dev/net/tun needs no privilege and so
// proves nothing.
func HaveTUN() error {
	t, err := CreateTUN(TUNConfig{Name: "nctlprobe%d"})
	switch {
	case err == nil:
		return t.Destroy()
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no %s: load the tun module or give the container the device: %w", tunPath, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("not allowed to make TUN devices: needs CAP_NET_ADMIN and write permission on %s: %w", tunPath, err)
	default:
		return err
	}
}

// HaveNamespaces reports why network namespaces cannot be made here, or nil.
func HaveNamespaces() error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: CAP_SYS_ADMIN is needed: %w", err)
		}
		return nil
	})
}
