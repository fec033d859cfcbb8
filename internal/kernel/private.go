package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// PrivateNamespace makes a network namespace that has no name. It ends with its last
// descriptor, process and interface's owner.
func PrivateNamespace() (*Namespace, error) {
	fd := -1
	err := onThread(func() error {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			fd, err = openThreadNS()
		}
		if err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	ns, err := NamespaceFromFD(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return ns, nil
}
