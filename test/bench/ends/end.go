package ends

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"

	"github.com/netctl/netctl/internal/kernel"
)

// Command is the argument that makes the measuring program an end.
const Command = "serve-as-an-end"

// End is a running end.
type End struct {
	Name string
	cmd  *exec.Cmd
	in   io.WriteCloser

	mu      sync.Mutex
	next    int
	waiting map[int]chan answer // nil when it has ended
	ended   chan struct{}
}

// question and answer are the lines between the two processes.
type question struct {
	ID      int     `json:"id"`
	Request Request `json:"request"`
}

type answer struct {
	ID     int    `json:"id"` // 0: it serves
	Result Result `json:"result"`
	Error  string `json:"error,omitempty"`
}

// Anywhere is for ends that may run on every processor.
const Anywhere = -1

// Start starts an end in a namespace, on one processor or anywhere, and returns when it
// serves.
func Start(name string, ns *kernel.Namespace, processor int) (*End, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	args := []string{exe, Command}
	if processor != Anywhere {
		args = append([]string{"taskset", "--cpu-list", strconv.Itoa(processor)}, args...)
	}
	e := &End{Name: name, cmd: exec.Command(args[0], args[1:]...), waiting: map[int]chan answer{}, ended: make(chan struct{})} //nolint:noctx // Close ends it
	e.cmd.Stderr = os.Stderr
	if e.in, err = e.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start an end in %s: %w", name, err)
	}
	out, err := e.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start an end in %s: %w", name, err)
	}
	ready := make(chan answer, 1)
	e.waiting[0] = ready
	if err := kernel.StartIn(ns, e.cmd); err != nil {
		return nil, fmt.Errorf("start an end in %s: %w", name, err)
	}
	go e.listen(out)
	if a := <-ready; a.Error != "" {
		return nil, errors.Join(fmt.Errorf("an end in %s: %s", name, a.Error), e.Close())
	}
	return e, nil
}

// PID is its process.
func (e *End) PID() int { return e.cmd.Process.Pid }

func (e *End) listen(out io.Reader) {
	dec := json.NewDecoder(out)
	for {
		var a answer
		if err := dec.Decode(&a); err != nil {
			e.mu.Lock()
			for id, c := range e.waiting {
				c <- answer{ID: id, Error: fmt.Sprintf("it ended: %v", err)}
			}
			e.waiting = nil
			e.mu.Unlock()
			close(e.ended)
			return
		}
		e.mu.Lock()
		c := e.waiting[a.ID]
		delete(e.waiting, a.ID)
		e.mu.Unlock()
		if c != nil {
			c <- a
		}
	}
}

// Send has it send, and waits. Several requests may be under way.
func (e *End) Send(ctx context.Context, r Request) (Result, error) {
	c := make(chan answer, 1)
	e.mu.Lock()
	if e.waiting == nil {
		e.mu.Unlock()
		return Result{}, fmt.Errorf("%s has ended", e.Name)
	}
	e.next++
	id := e.next
	e.waiting[id] = c
	e.mu.Unlock()
	line, err := json.Marshal(question{id, r})
	if err == nil {
		_, err = e.in.Write(append(line, '\n'))
	}
	if err != nil {
		return Result{}, fmt.Errorf("ask %s for a %s to %s: %w", e.Name, r.Kind, r.To, err)
	}
	select {
	case <-ctx.Done():
		return Result{}, ctx.Err()
	case a := <-c:
		if a.Error != "" {
			return a.Result, fmt.Errorf("%s from %s to %s: %s", r.Kind, e.Name, r.To, a.Error)
		}
		return a.Result, nil
	}
}

// Close ends it.
func (e *End) Close() error {
	_ = e.in.Close()
	_ = e.cmd.Process.Kill() // its work is worth nothing now
	<-e.ended
	_ = e.cmd.Wait() // killed
	return nil
}
