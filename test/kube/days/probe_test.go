package days_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/agent/record"
)

// probeEnv makes this very test a probe: a program that sends requests from a
// pod's network until its standard input ends.
const probeEnv = "NETCTL_DAYS_PROBE"

// Between two requests, and for one of them.
const (
	probeInterval = 50 * time.Millisecond
	probeTimeout  = time.Second
)

// report is what a probe saw.
type report struct {
	Sent, Failed int
	Gap          time.Duration // the longest without an answer
	LastGood     time.Time
	Errors       map[string]occurrence
	Broken       string // why the one connection ended, when it may not
}

// occurrence says how often an error was seen, and when first.
type occurrence struct {
	Count int
	First time.Time
}

func (o occurrence) String() string {
	return fmt.Sprintf("%d from %s on", o.Count, o.First.UTC().Format(time.StampMilli))
}

func (r *report) String() string {
	return fmt.Sprintf("%d of %d requests failed, longest gap %s", r.Failed, r.Sent, r.Gap.Round(10*time.Millisecond))
}

// probe sends requests: "each URL" with a connection for each, "one URL" all on
// one connection, which no failure may end.
func probe(stop io.Reader, out io.Writer, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: each|one URL")
	}
	dialed := false
	transport := &http.Transport{DisableKeepAlives: args[0] == "each"}
	client := &http.Client{Transport: transport, Timeout: probeTimeout}
	if args[0] == "one" {
		client.Timeout = 2 * time.Minute // TCP has to live through it
		transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if dialed {
				return nil, errors.New("the connection ended")
			}
			dialed = true
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		}
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, stop)
		close(ended)
	}()
	r := report{LastGood: time.Now(), Errors: map[string]occurrence{}}
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ended:
			r.Gap = max(r.Gap, time.Since(r.LastGood))
			return json.NewEncoder(out).Encode(&r)
		case <-ticker.C:
		}
		r.Sent++
		err := ask(client, args[1])
		if err == nil {
			now := time.Now()
			r.Gap, r.LastGood = max(r.Gap, now.Sub(r.LastGood)), now
			continue
		}
		r.Failed++
		seen := r.Errors[err.Error()]
		if seen.Count++; seen.Count == 1 {
			seen.First = time.Now()
		}
		r.Errors[err.Error()] = seen
		if args[0] == "one" {
			r.Broken = err.Error()
			<-ended
		}
	}
}

func ask(client *http.Client, url string) error {
	res, err := client.Get(url)
	if err != nil {
		// Without the ports, so that equal errors are counted.
		if op, ok := errors.AsType[*net.OpError](err); ok {
			return fmt.Errorf("%s: %w", op.Op, op.Err)
		}
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	return err
}

// running is a probe at work.
type running struct {
	what string
	cmd  *exec.Cmd
	in   io.Closer
	out  bytes.Buffer
}

// start starts a probe in the network at a path.
func start(t *testing.T, what, netns string, args ...string) *running {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &running{what: what, cmd: exec.Command("nsenter", append([]string{"--net=" + netns, "--", self}, args...)...)}
	p.cmd.Env = append(os.Environ(), probeEnv+"=1")
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("probe %s: %v", what, err)
	}
	t.Cleanup(func() { _, _ = p.stop() })
	return p
}

// stop ends the probe and returns what it saw.
func (p *running) stop() (*report, error) {
	_ = p.in.Close() // again, when it was stopped already
	if p.cmd.ProcessState == nil {
		if err := p.cmd.Wait(); err != nil {
			return nil, fmt.Errorf("probe %s: %w: %s", p.what, err, p.out.String())
		}
	}
	r := new(report)
	if err := json.NewDecoder(bufio.NewReader(&p.out)).Decode(r); err != nil {
		return nil, fmt.Errorf("probe %s: %w", p.what, err)
	}
	return r, nil
}

// seen ends the probe.
func (p *running) seen(t *testing.T) *report {
	t.Helper()
	r, err := p.stop()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// unharmed ends the probe, which must have seen no failure.
func (p *running) unharmed(t *testing.T) *report {
	t.Helper()
	r := p.seen(t)
	if r.Failed > 0 || r.Sent == 0 {
		t.Errorf("%s: %s: %v", p.what, r, r.Errors)
	}
	return r
}

// recovered ends the probe, whose requests must have been answered at last.
func (p *running) recovered(t *testing.T) *report {
	t.Helper()
	time.Sleep(2*probeInterval + probeTimeout) // what was lost is over
	end := time.Now()
	time.Sleep(4 * probeInterval)
	r := p.seen(t)
	if r.LastGood.Before(end) {
		t.Errorf("%s: nothing answers since %s: %v", p.what, r.LastGood, r.Errors)
	}
	return r
}

// record returns what the agent of a pod's node remembers of it.
func (c *cluster) record(t *testing.T, p *object) record.Record {
	t.Helper()
	root, err := c.root(p.Spec.NodeName)
	if err != nil {
		t.Fatal(err)
	}
	recs, err := records(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range recs {
		if r.UID == p.Metadata.UID && r.Ready {
			return r
		}
	}
	t.Fatalf("%s has no record of %s", p.Spec.NodeName, p.Metadata.Name)
	return record.Record{}
}

// in returns the path of a pod's network on this machine.
func (c *cluster) in(t *testing.T, p *object) string {
	t.Helper()
	root, err := c.root(p.Spec.NodeName)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, strings.TrimPrefix(c.record(t, p).Netns, "/var"))
}

// reach asks once from a network.
func reach(netns, url string) error {
	out, err := exec.Command("nsenter", "--net="+netns, "--", "curl", "-sS", "-f", "-o", "/dev/null", "-m", "3", url).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", url, err, strings.TrimSpace(string(out)))
	}
	return nil
}
