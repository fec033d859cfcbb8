package shim

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/cni/wire"
)

func env(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func TestInvoked(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		argv0, command string
		want           bool
	}{
		{"/usr/bin/netctl", "", false},
		{"/usr/bin/netctl", "ADD", true},
		{"/opt/cni/bin/netctl-cni", "", true},
		{"loopback", "", true},
		{"", "", false},
	} {
		if got := Invoked(c.argv0, env(map[string]string{"CNI_COMMAND": c.command})); got != c.want {
			t.Errorf("%q %q: got %v, want %v", c.argv0, c.command, got, c.want)
		}
	}
}

func TestWithin(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		record string
		want   bool
	}{
		"just now":     {"b 100.00\n", true},
		"59 s ago":     {"b 41.00\n", true},
		"60 s ago":     {"b 40.00\n", false},
		"later":        {"b 100.01\n", false},
		"other boot":   {"c 100.00\n", false},
		"negative":     {"b -1\n", false},
		"not a number": {"b NaN\n", false},
		"infinite":     {"b Inf\n", false},
		"one word":     {"b", false},
		"empty":        {"", false},
	} {
		if got := within(c.record, "b", 100*time.Second); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

func TestLimitsFitIntoEachOther(t *testing.T) {
	t.Parallel()
	for _, command := range []string{wire.Add, wire.Del, wire.Check, wire.GC, wire.Status, wire.VersionOfSpec, "else"} {
		l := limits(command)
		if l.agent >= l.total || l.total-l.agent < queueReserve {
			t.Errorf("%s: waits %v for the agent of %v in all", command, l.agent, l.total)
		}
	}
}

// stuck is a stdin that never ends.
type stuck struct{}

func (stuck) Read([]byte) (int, error) { select {} }

func TestMainEndsInTime(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	code := Main(Process{
		Name: "netctl-cni", Getenv: env(map[string]string{"CNI_COMMAND": "STATUS"}),
		Stdin: stuck{}, Stdout: &out, Stderr: &errs,
	})
	if code != 1 || !strings.Contains(out.String(), `"code":50`) {
		t.Errorf("exit %d %s", code, out.String())
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","socket":"/run/netctl/cni.sock","prevResult":null}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := parseConfig(raw)
		if err != nil {
			if !json.Valid(err.JSON()) {
				t.Errorf("error is no JSON: %s", err.JSON())
			}
			return
		}
		if !strings.HasPrefix(c.Socket, "/") || len(c.Socket) > wire.MaxSocketPath {
			t.Errorf("socket %q passed", c.Socket)
		}
		if frame, err := wire.Frame(&wire.Request{Config: c.raw}); err != nil && len(raw) <= wire.MaxConfig {
			t.Errorf("configuration does not fit into a frame: %v %d", err, len(frame))
		}
		_ = versionInfo(bytes.NewReader(raw))
	})
}

func FuzzHealthRecord(f *testing.F) {
	f.Add("b 000000000041.00\n")
	f.Fuzz(func(t *testing.T, record string) {
		if within(record, "b", 0) && !strings.HasPrefix(record, "b ") {
			t.Errorf("%q passed", record)
		}
	})
}

func FuzzNetlinkReply(f *testing.F) {
	ack := make([]byte, 20)
	binary.NativeEndian.PutUint16(ack[4:], syscall.NLMSG_ERROR)
	f.Add(ack)
	link := make([]byte, linkLen)
	binary.NativeEndian.PutUint16(link[4:], syscall.RTM_NEWLINK)
	f.Add(link)
	f.Fuzz(func(_ *testing.T, reply []byte) {
		_ = replyError(reply)
		_, _ = linkUp(reply)
	})
}
