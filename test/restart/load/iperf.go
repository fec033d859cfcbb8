package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The ports of iperf3's servers: for who speaks with the pod itself, and for who comes
// by its Service. One server serves one client at a time. A Service of theirs needs
// affinity: iperf3 has two connections, which must reach the same pod.
const (
	IperfPort        = 5201
	IperfServicePort = 5202
)

const (
	iperf = "iperf3"
	// iperfInterval is the least that iperf3 reports of.
	iperfInterval = 100 * time.Millisecond
	// iperfAgain is how long a client that failed waits.
	iperfAgain = 200 * time.Millisecond
)

// IperfWay is how a client of iperf3 reaches its server.
type IperfWay struct {
	Way

	Port uint16
}

// Iperf is a stream of iperf3 on each way. What comes is what its servers say of each
// tenth of a second, what was sent again is what its clients say.
type Iperf struct {
	stop context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	counts  Counts
	silent  map[string]int       // by server: tenths of a second without a byte, up to now
	clients map[string]time.Time // by way: when something was sent last
}

// HaveIperf reports why there can be no such load.
func HaveIperf() error {
	if _, err := exec.LookPath(iperf); err != nil {
		return fmt.Errorf("%w: 'make setup' installs it; -loads leaves loads out", err)
	}
	return nil
}

// StartIperf starts servers at places, on both ports, and a client of so many megabits
// a second on each way.
func StartIperf(ctx context.Context, ways []IperfWay, places []*Place, mbits int) (*Iperf, error) {
	if err := HaveIperf(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l := &Iperf{stop: cancel, silent: map[string]int{}, clients: map[string]time.Time{}}
	interval := strconv.FormatFloat(iperfInterval.Seconds(), 'f', -1, 64)
	for _, p := range places {
		for _, port := range []uint16{IperfPort, IperfServicePort} {
			name := fmt.Sprintf("%s:%d", p.Name, port)
			l.work.Go(func() {
				err := l.run(ctx, p, func(line string) { l.received(name, line) }, "--server", "--port", strconv.Itoa(int(port)), "--interval", interval, "--forceflush")
				l.ended(ctx, name, err)
			})
		}
	}
	for _, w := range ways {
		l.mu.Lock()
		l.clients[w.String()] = time.Time{}
		l.mu.Unlock()
		l.work.Go(func() {
			for ctx.Err() == nil {
				err := l.run(ctx, w.From, func(line string) { l.sent(w.String(), line) }, "--client", w.To.String(), "--port", strconv.Itoa(int(w.Port)), "--time", "86400",
					"--bitrate", strconv.Itoa(mbits)+"M", "--length", "8K", "--interval", interval, "--connect-timeout", "5000", "--forceflush")
				if l.began(w) { // or the server was not there yet
					l.ended(ctx, w.String(), err)
				}
				wait(ctx, iperfAgain)
			}
		})
	}
	return l, nil
}

// run runs iperf3 at a place until it ends, or the context does.
func (l *Iperf) run(ctx context.Context, at *Place, line func(string), args ...string) error {
	cmd := exec.CommandContext(ctx, iperf, args...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // with the place's thread
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = at.do(cmd.Start) // in its namespace
	}
	if err != nil {
		return err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line(lines.Text())
	}
	err = cmd.Wait()
	if complaint.Len() > 0 {
		err = errors.Join(err, errors.New(strings.TrimSpace(complaint.String())))
	}
	return err
}

// An interval's line: how much, in which unit, and of a client how often again.
//
//	[  5]   0.10-0.20   sec   256 KBytes  21.0 Mbits/sec    0   1.12 MBytes
var iperfLine = regexp.MustCompile(`^\[ *\d+\] +[\d.]+-[\d.]+ +sec +([\d.]+) +([KMGT]?)Bytes +[\d.]+ +[KMGT]?bits/sec(?: +(\d+) +[\d.]+ +[KMGT]?Bytes)? *$`)

// iperfBytes returns what a line says; not ok: it is none of an interval.
func iperfBytes(line string) (size float64, again int, ok bool) {
	f := iperfLine.FindStringSubmatch(line)
	if f == nil {
		return 0, 0, false
	}
	size, err := strconv.ParseFloat(f[1], 64)
	if err != nil {
		return 0, 0, false
	}
	if f[2] != "" {
		size *= float64(int(1) << (10 * (1 + strings.Index("KMGT", f[2]))))
	}
	again, _ = strconv.Atoi(f[3]) // a server says nothing of it
	return size, again, true
}

// received is a server's line.
func (l *Iperf) received(server, line string) {
	size, _, ok := iperfBytes(line)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Sent += int(size)
	if size > 0 {
		l.silent[server] = 0
		return
	}
	l.silent[server]++
	l.counts.Silent++
	l.counts.Gap = max(l.counts.Gap, time.Duration(l.silent[server])*iperfInterval)
}

// sent is a client's line.
func (l *Iperf) sent(way, line string) {
	size, again, ok := iperfBytes(line)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Again += again
	if size > 0 {
		l.clients[way] = time.Now()
	}
}

// began reports whether a way's client has ever sent something.
func (l *Iperf) began(w IperfWay) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.clients[w.String()].IsZero()
}

// ended is the end of a process, which none has before the load's.
func (l *Iperf) ended(ctx context.Context, who string, err error) {
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Lost++
	l.counts.fail(fmt.Errorf("iperf3 %s: %w", who, err))
}

// Name implements Load.
func (l *Iperf) Name() string { return "iperf3" }

// Cut implements Load.
func (l *Iperf) Cut() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.counts
	l.counts = Counts{}
	return out
}

// Flows implements Load.
func (l *Iperf) Flows(since time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for way, last := range l.clients {
		if !last.After(since) {
			return fmt.Errorf("iperf3 sends nothing: %s", way)
		}
	}
	return nil
}

// Settle implements Load.
func (l *Iperf) Settle(ctx context.Context) { wait(ctx, 2*iperfInterval) }

// Close implements Load.
func (l *Iperf) Close() error {
	l.stop()
	l.work.Wait()
	return nil
}
