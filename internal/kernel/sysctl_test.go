package kernel_test

import (
	"errors"
	"os"
	"os/exec"
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

// In a container /proc/sys is read-only: what is needed says so, what is not
// needed is reported and done without. The test runs itself again in a mount
// namespace that is like that.
func TestReadOnlyProcSys(t *testing.T) {
	t.Parallel()
	needTUN(t)
	if os.Getenv("KERNEL_TEST_READ_ONLY") == "" {
		unshare, err := exec.LookPath("unshare")
		if err != nil {
			t.Skip("needs unshare of util-linux")
		}
		cmd := exec.Command(unshare, "--mount", "sh", "-c",
			`mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$0" -test.run='^TestReadOnlyProcSys$' -test.v`, os.Args[0])
		cmd.Env = append(os.Environ(), "KERNEL_TEST_READ_ONLY=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
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
