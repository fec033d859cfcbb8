package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	debianSuite = "bookworm"
	// debianPackages is what the scripts of the end-to-end tests call inside
	// agnhost, what kubelet, kube-proxy and the CNI plugins call on a node, and
	// what a person looks for on both.
	debianPackages = "bind9-dnsutils,ca-certificates,conntrack,curl,ethtool,hostname,iperf,iperf3,iproute2,iptables," +
		"iputils-ping,kmod,mount,netcat-openbsd,nftables,procps,psmisc,socat,tcpdump,tini,util-linux,wget"
)

// needless are the parts of a fresh Debian that only weigh.
const needless = "var/cache/apt var/lib/apt/lists var/log usr/share/doc usr/share/man usr/share/locale " +
	"usr/share/info usr/share/zoneinfo"

func (c *Cache) rootfs() part {
	return part{
		name: "rootfs", says: "a small Debian, about a minute", last: "rootfs",
		key: func() (string, error) {
			return key([]string{debianSuite, debianPackages, needless, "2"})
		},
		make: func(ctx context.Context) error {
			return c.replace("rootfs", func(dir string) error {
				err := c.run(ctx, "debootstrap", c.dir, nil, "debootstrap", "--variant=minbase",
					"--include="+debianPackages, debianSuite, dir)
				if err != nil {
					return err
				}
				return furnish(dir)
			})
		},
	}
}

// furnish removes what is not needed and adds what Kubernetes expects.
func furnish(dir string) error {
	var errs []error
	for n := range strings.FieldsSeq(needless) {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, n)))
	}
	for _, d := range []string{
		"var/log", "opt/cni/bin", "etc/cni/net.d",
		// kubelet, controller-manager and kube-proxy want them; /usr is read-only on a node
		"usr/libexec/kubernetes/kubelet-plugins/volume/exec", "usr/lib/modules",
		"usr/local/share/ca-certificates", "etc/ca-certificates",
	} {
		errs = append(errs, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for file, line := range map[string]string{ // as upstream's agnhost has it
		"etc/passwd": "user-defined-in-image:x:1000:1000::/home:/bin/sh",
		"etc/group":  "user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image",
	} {
		f, err := os.OpenFile(filepath.Join(dir, file), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		_, err = fmt.Fprintln(f, line)
		errs = append(errs, err, f.Close())
	}
	return errors.Join(errs...)
}
