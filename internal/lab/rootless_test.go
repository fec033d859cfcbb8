package lab

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// asNobody runs a script in a mount namespace of its own, in which everybody
// may open /dev/net/tun, as the user nobody without any capability.
func asNobody(t *testing.T, script string) (string, error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	for _, p := range []string{"unshare", "setpriv", "nsenter"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("no %s here", p)
		}
	}
	dir, err := os.MkdirTemp("", "nr") //nolint:usetesting // another user must reach it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "-m", "sh", "-ec", `
mkdir "$HOME/dev"
mount -t tmpfs -o mode=755 none "$HOME/dev"
mknod -m 0666 "$HOME/dev/tun" c 10 200
mount --bind "$HOME/dev" /dev/net
cd /
exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs sh -ec "$1"`, "sh", script)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "GORACE=" + os.Getenv("GORACE"), "NETCTL=" + released}
	out, err := cmd.CombinedOutput()
	eventually(t, 5*time.Second, func() error {
		if left := processesOf(dir); len(left) > 0 {
			return fmt.Errorf("processes are left: %v", left)
		}
		return nil
	})
	return string(out), err
}

// needUserNamespace skips where users may not make what a rootless lab is.
func needUserNamespace(t *testing.T) {
	t.Helper()
	if out, err := asNobody(t, `unshare -Urnm sh -ec 'ip tuntap add probe0 mode tun'`); err != nil {
		t.Skipf("no user namespace with a TUN for nobody here: %v: %s", err, out)
	}
}

func TestDemoWithoutRoot(t *testing.T) {
	t.Parallel()
	turn(t)
	needUserNamespace(t)
	name := labNameFor(t)
	out, err := asNobody(t, `"$NETCTL" lab demo --dual-stack --name `+name)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if last := lines[len(lines)-1]; err != nil || !strings.HasSuffix(last, " checks passed") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestCommandsWithoutRoot(t *testing.T) {
	t.Parallel()
	turn(t)
	needUserNamespace(t)
	name := labNameFor(t)
	out, err := asNobody(t, `
run() { command=$1; shift; "$NETCTL" lab "$command" --name `+name+` "$@"; }
! run status
ls -A "$TMPDIR"/netctl-lab-65534 2>/dev/null || true
run up --nodes 2 -f - <<'M'
`+podYAML("client", "node1", "sleep", "600")+podYAML("web", "node2")+`
M
run status
run exec client -- id -u
run exec client -- netctl lab fetch http://$(run exec web -- hostname -I)
! run up
run apply -f - <<'M'
`+podYAML("late", "node1")+`
M
run delete pod late
run logs node1 | grep -c "agent serves"
run down
run down
! ls -A "$TMPDIR"/netctl-lab-65534
`)
	if err != nil {
		t.Errorf("%v", err)
	}
	for _, want := range []string{
		"is not up; start it with 'netctl lab up --name " + name, "default/web", "hostname=web node=node2", "is up already", "late deleted",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}
