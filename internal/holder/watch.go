package holder

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// lookTime is how often an owner is looked at that has said that it beats, which it
	// does twice a second.
	lookTime = 250 * time.Millisecond
	// stillLooks is for how many looks in a row, three seconds, such a one must have
	// said nothing and stood still before it is killed.
	stillLooks = 12
	// starving is how long its threads may have waited for a processor between two
	// looks, in all, for its silence to be its own fault.
	starving = lookTime / 8
)

// watch kills a process that is the owner and does not go on. It counts looks, not
// time, since the holder may itself have been stopped. Two rules:
//
//   - Who beats, and then says nothing for as long as stillLooks, is killed if all that
//     time it could have spoken: it was stopped by a signal, or all of its threads
//     slept. One that runs, waits for a processor or is inside the kernel is only slow,
//     as everything is on a loaded machine.
//   - A worker that we have started and that says nothing for as long as silence is
//     killed in any case: nobody else looks after it. 0: somebody does.
func (h *Holder) watch(p *os.Process, conn *net.UnixConn, ended <-chan struct{}, silence time.Duration) {
	look := lookTime
	if silence > 0 {
		look = min(look, silence/stillLooks)
	}
	tick := time.NewTicker(look)
	defer tick.Stop()
	var last uint64
	var waited time.Duration
	silent, still := 0, 0
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		heard, owner, beats := h.heardOf(conn)
		if !owner || heard != last {
			last, silent, still = heard, 0, 0
			continue
		}
		silent++
		c, err := conditionOf(p.Pid)
		switch {
		case err != nil: // a kernel that does not say
			still = 0
		case c.stopped, !c.busy && c.waited-waited < starving && still > 0:
			still++
		case !c.busy:
			still = 1 // from this look on
		default:
			still = 0
		}
		waited = c.waited
		if beats && still > stillLooks && silent > stillLooks {
			h.cfg.Log.Error("agent stands still and is killed", "pid", p.Pid, "stopped", c.stopped, "for", stillLooks*look)
			break
		}
		if silence > 0 && time.Duration(silent)*look >= silence {
			h.cfg.Log.Error("worker says nothing and is killed", "pid", p.Pid, "for", silence)
			break
		}
	}
	_ = p.Kill() // it may have ended just now
}

// watchClient watches a client that another one has started, if it is seen from here:
// the containers of its pod share their processes' numbers.
func (h *Holder) watchClient(pid int, conn *net.UnixConn, left <-chan bool) {
	if pid <= 0 || pid == os.Getpid() {
		return
	}
	p, err := os.FindProcess(pid) // this very process, whoever has its number later
	if err != nil {
		return
	}
	ended := make(chan struct{})
	go func() {
		<-left
		close(ended)
	}()
	h.watch(p, conn, ended, 0)
	_ = p.Release() // nothing depends on it any more
}

// condition is what the kernel says of a process.
type condition struct {
	stopped bool          // by a signal
	busy    bool          // a thread runs, could run, or is inside the kernel
	waited  time.Duration // for a processor; all threads, ever
}

// conditionOf looks at all threads of a process.
func conditionOf(pid int) (condition, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err == nil && len(tasks) == 0 {
		err = errors.New("it has ended")
	}
	if err != nil {
		return condition{}, err
	}
	c := condition{stopped: true}
	for _, task := range tasks {
		stat, err := os.ReadFile(task + "/stat")
		if errors.Is(err, os.ErrNotExist) {
			continue // a thread that has just ended
		}
		_, after, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" ")) // its name may have anything in it
		if err != nil || !ok || len(after) == 0 {
			return condition{}, fmt.Errorf("state of %s: %w", task, errors.Join(err, errRequest))
		}
		switch after[0] {
		case 'T':
		case 'S', 'I':
			c.stopped = false
		default:
			c.stopped, c.busy = false, true
		}
		text, err := os.ReadFile(task + "/schedstat")
		f := strings.Fields(string(text))
		if err != nil || len(f) < 2 {
			return condition{}, fmt.Errorf("waits of %s: %w", task, errors.Join(err, errRequest))
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return condition{}, fmt.Errorf("waits of %s: %w", task, err)
		}
		c.waited += time.Duration(n)
	}
	return c, nil
}
