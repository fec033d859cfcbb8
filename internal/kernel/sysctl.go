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
