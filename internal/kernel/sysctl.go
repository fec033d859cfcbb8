package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const sysctlRoot = "/proc/sys"

// SetForwarding lets the namespace forward IPv4 and IPv6, where there is IPv6.
func SetForwarding(ns *Namespace) error {
	return ns.Do(func() error {
		if err := setSysctl("net/ipv4/ip_forward", "1"); err != nil {
			return err
		}
		err := setSysctl("net/ipv6/conf/all/forwarding", "1")
		if errors.Is(err, ErrNoSysctl) {
			return nil
		}
		return err
	})
}

// ForwardOwn lets packets that are written into the named TUN with an address of
// the host as their source be forwarded, and says why they are not: what is more
// than the device's own setting is left to the administrator. Only what the families
// of the ranges need is looked at, or both families without ranges.
func ForwardOwn(ns *Namespace, name string, ranges ...netip.Prefix) error {
	need := func(is4 bool) bool {
		return len(ranges) == 0 || slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Addr().Is4() == is4 })
	}
	return ns.Do(func() error {
		conf := "net/ipv4/conf/" + name
		err := errors.Join(setSysctl(conf+"/accept_local", "1"), setSysctl(conf+"/rp_filter", "0"))
		for _, must := range []struct{ key, not, why string }{
			{"net/ipv4/ip_forward", "0", "IPv4 is not forwarded"},
			{"net/ipv4/conf/all/rp_filter", "1", "the strict filter of sources holds for every interface"},
			{"net/ipv6/conf/all/forwarding", "0", "IPv6 is not forwarded"},
		} {
			have, readErr := sysctl(must.key)
			switch {
			case !need(strings.HasPrefix(must.key, "net/ipv4/")):
			case errors.Is(readErr, ErrNoSysctl):
			case readErr != nil:
				err = errors.Join(err, readErr)
			case have == must.not:
				err = errors.Join(err, fmt.Errorf("%s is %s: %s", must.key, have, must.why))
			}
		}
		return err
	})
}

// sysctl reads in the thread's namespace: /proc/sys/net shows each thread its
// own.
func sysctl(key string) (string, error) {
	path, err := sysctlPath(key)
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read sysctl %s: %w", key, ErrNoSysctl)
	}
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// setSysctl writes in the thread's namespace, unless the value is there already.
// Containers have /proc/sys read-only, which keeps them from the machine's own
// settings; those of a network namespace that they administer are written through
// a procfs that is mounted nowhere, and no others are.
func setSysctl(key, value string) error {
	have, err := sysctl(key)
	if err != nil || have == value {
		return err
	}
	path, err := sysctlPath(key)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, unix.EROFS) && strings.HasPrefix(key, "net/") {
		if f, err = openDetached(key); err != nil {
			return fmt.Errorf("set sysctl %s to %s (it is %s): %w: %w", key, value, have, ErrReadOnly, err)
		}
	}
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("set sysctl %s to %s (it is %s): %w", key, value, have, ErrReadOnly)
	}
	if err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	_, err = f.WriteString(value)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", key, value, err)
	}
	return nil
}

// openDetached opens a sysctl for writing in a procfs of its own, which ends with
// the file. It needs Linux 5.2 and CAP_SYS_ADMIN.
func openDetached(key string) (*os.File, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, filepath.Join("sys", key), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	return os.NewFile(uintptr(fd), key), nil
}

// sysctlPath keeps a key inside the sysctl tree, whatever an interface is
// called.
func sysctlPath(key string) (string, error) {
	if !filepath.IsLocal(key) || filepath.Clean(key) != key || key == "." {
		return "", fmt.Errorf("bad sysctl %q", key)
	}
	return filepath.Join(sysctlRoot, key), nil
}
