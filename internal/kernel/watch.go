package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watchBuffer holds any netlink message; what does not fit is cut off, which is
// of no interest because only the fact of a message counts.
const watchBuffer = 4096

// WatchAddresses reports that addresses of the caller's namespace changed, and
// with them possibly routes: when a source address goes, the kernel removes the
// IPv4 routes that prefer it and takes the preference off the IPv6 ones.
// Reports are merged: one may stand for many changes, and one comes at
// the start so that nothing is missed before it. The channel is closed when the
// context ends.
func WatchAddresses(ctx context.Context) (<-chan struct{}, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	groups := uint32(unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	file := os.NewFile(uintptr(fd), "netlink")
	changes := make(chan struct{}, 1)
	changes <- struct{}{}
	stop := context.AfterFunc(ctx, func() { file.Close() })
	go func() {
		defer close(changes)
		defer stop()
		defer file.Close()
		buf := make([]byte, watchBuffer)
		for {
			_, err := file.Read(buf)
			// ENOBUFS: so many changes that some were lost. All the more
			// reason to look.
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			select {
			case changes <- struct{}{}:
			default:
			}
		}
	}()
	return changes, nil
}
