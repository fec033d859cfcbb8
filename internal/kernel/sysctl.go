package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const sysctlRoot = "/proc/sys"

// Sysctl reads a setting of the namespace, such as "net/ipv4/ip_forward".
// Slashes separate, because interface names may contain dots. The error wraps
// ErrNoSysctl when this kernel has none.
func Sysctl(ns *Namespace, key string) (string, error) {
	var out string
	err := ns.Do(func() (err error) {
		out, err = sysctl(key)
		return err
	})
	return out, err
}

// SetSysctl writes a setting of the namespace unless it has that value already,
// so a read-only /proc/sys that is right is no error. The error wraps
// ErrReadOnly or ErrNoSysctl.
func SetSysctl(ns *Namespace, key, value string) error {
	return ns.Do(func() error { return setSysctl(key, value) })
}

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

// sysctlPath keeps a key inside the sysctl tree, whatever an interface is
// called.
func sysctlPath(key string) (string, error) {
	if !filepath.IsLocal(key) || filepath.Clean(key) != key || key == "." {
		return "", fmt.Errorf("bad sysctl %q", key)
	}
	return filepath.Join(sysctlRoot, key), nil
}
