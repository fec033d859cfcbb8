package kernel_test

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/netctl/netctl/internal/kernel"
)

func TestSysctlIsPerNamespace(t *testing.T) {
	t.Parallel()
	a, b := newNS(t), newNS(t)
	const key = "net/ipv4/ip_forward"
	before, err := kernel.Sysctl(b, key)
	if err != nil {
		t.Fatal(err)
	}
	other := map[string]string{"0": "1", "1": "0"}[before]
	if err := kernel.SetSysctl(a, key, other); err != nil {
		t.Skipf("needs a writable /proc/sys: %v", err)
	}
	if got, err := kernel.Sysctl(a, key); got != other || err != nil {
		t.Errorf("a has %q, %v, want %s", got, err, other)
	}
	if got, err := kernel.Sysctl(b, key); got != before || err != nil {
		t.Errorf("b has %q, %v, want %s", got, err, before)
	}
}

func TestSysctlKeepsToItsTree(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	for _, key := range []string{"", ".", "../hostname", "/etc/passwd", "net/../../hostname", "net//ipv4/ip_forward", "net/ipv4/ip_forward/"} {
		if v, err := kernel.Sysctl(ns, key); err == nil {
			t.Errorf("%q was read: %q", key, v)
		}
		if err := kernel.SetSysctl(ns, key, "1"); err == nil {
			t.Errorf("%q was written", key)
		}
	}
	if _, err := kernel.Sysctl(ns, "net/ipv4/no_such_thing"); !errors.Is(err, kernel.ErrNoSysctl) {
		t.Errorf("got %v, want ErrNoSysctl", err)
	}
	if err := kernel.SetSysctl(ns, "net/ipv4/ip_forward", "nonsense"); err == nil {
		t.Error("nonsense was taken")
	}
}

// In a container /proc/sys is read-only. With the agent's capabilities and no
// others, settings of a pod's namespace are written all the same; where even that
// is not allowed, as in a user namespace, what is needed says so and what is not is
// done without. The test runs itself again in such surroundings.
func TestReadOnlyProcSys(t *testing.T) {
	t.Parallel()
	needTUN(t)
	const mode = "KERNEL_TEST_READ_ONLY"
	switch os.Getenv(mode) {
	case "container":
		readOnlyContainer(t)
		return
	case "rootless":
		readOnlyRootless(t)
		return
	}
	for _, c := range []struct {
		name    string
		unshare []string
		run     string
	}{
		{"container", []string{"--mount", "--uts"}, "setpriv --bounding-set=-all,+net_admin,+sys_admin,+net_raw,+net_bind_service --no-new-privs"},
		{"rootless", []string{"-Urnm"}, "env"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, program := range []string{"unshare", "setpriv"} {
				if _, err := exec.LookPath(program); err != nil {
					t.Skip("needs " + program + " of util-linux")
				}
			}
			cmd := exec.Command("unshare", slices.Concat(c.unshare, []string{
				"sh", "-c",
				`mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec ` + c.run + ` "$0" -test.run='^TestReadOnlyProcSys$' -test.v`, os.Args[0],
			})...)
			cmd.Env = append(os.Environ(), mode+"="+c.name)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func readOnlyContainer(t *testing.T) {
	home, pod := newNS(t), newNS(t)
	const off = "net/ipv6/conf/default/disable_ipv6"
	if err := kernel.SetSysctl(pod, off, "1"); err != nil { // as some runtimes make their namespaces
		t.Fatal(err)
	}
	if got, err := kernel.Sysctl(pod, off); got != "1" || err != nil {
		t.Errorf("the pod has %q, %v", got, err)
	}
	if got, err := kernel.Sysctl(home, off); got != "0" || err != nil {
		t.Errorf("another namespace has %q, %v", got, err)
	}
	tun := newTUN(t, home, kernel.TUNConfig{Name: "nctl%d"})
	cfg := podInterface()
	cfg.OnOptional = func(err error) { t.Errorf("not set: %v", err) }
	moveIn(t, home, tun, pod, cfg)
	link, err := kernel.Describe(pod, "eth0")
	if err != nil || len(link.Addresses) != 2 {
		t.Errorf("got %+v, %v, want both addresses and nothing else", link, err)
	}
	for key, want := range map[string]string{"disable_ipv6": "0", "accept_ra": "0"} {
		if got, err := kernel.Sysctl(pod, "net/ipv6/conf/eth0/"+key); got != want || err != nil {
			t.Errorf("%s is %q, %v, want %s", key, got, err, want)
		}
	}
	// What belongs to the machine stays as protected as the mount has it. (The name
	// is that of the test's own UTS namespace.)
	if err := kernel.SetSysctl(nil, "kernel/hostname", "other"); !errors.Is(err, kernel.ErrReadOnly) {
		t.Errorf("a setting of the machine: got %v, want ErrReadOnly", err)
	}
}

func readOnlyRootless(t *testing.T) {
	home, pod := newNS(t), newNS(t)
	const key = "net/ipv4/ip_forward"
	have, err := kernel.Sysctl(pod, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := kernel.SetSysctl(pod, key, have); err != nil {
		t.Errorf("a value that is right already: %v", err)
	}
	if err := kernel.SetSysctl(pod, key, "2"); !errors.Is(err, kernel.ErrReadOnly) {
		t.Errorf("got %v, want ErrReadOnly", err)
	}
	tun := newTUN(t, home, kernel.TUNConfig{Name: "nctl%d"})
	cfg := podInterface()
	var optional []error
	cfg.OnOptional = func(err error) { optional = append(optional, err) }
	moveIn(t, home, tun, pod, cfg)
	link, err := kernel.Describe(pod, "eth0")
	if err != nil || len(link.Addresses) != 2 {
		t.Errorf("got %+v, %v, want both addresses and nothing else", link, err)
	}
	if len(optional) != 1 || !errors.Is(optional[0], kernel.ErrReadOnly) {
		t.Errorf("reported %v, want accept_ra once", optional)
	}
}
