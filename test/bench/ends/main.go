package ends

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
)

// Main is the whole life of an end.
func Main() error {
	runtime.GOMAXPROCS(64)   // threads that wait in a system call keep nobody from running
	debug.SetGCPercent(1000) // nothing in the loops allocates
	var mu sync.Mutex        // guards out
	out := json.NewEncoder(os.Stdout)
	say := func(a answer) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(a) // who does not listen any more has closed the input too
	}
	var taken sink
	if err := serve(&taken); err != nil {
		say(answer{Error: err.Error()})
		return err
	}
	say(answer{})
	in := json.NewDecoder(os.Stdin)
	for {
		var q question
		if err := in.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		go func() {
			r, err := q.Request.send()
			if q.Request.Kind == Count {
				r, err = Result{Bytes: float64(taken.taken.Load())}, nil
			}
			a := answer{ID: q.ID, Result: r}
			if err != nil {
				a.Error = err.Error()
			}
			say(a)
		}()
	}
}

// send does what a request says.
func (r Request) send() (Result, error) {
	r.Number, r.Flows = max(r.Number, 1), max(r.Flows, 1)
	if r.Size == 0 {
		r.Size = DefaultSize
	}
	switch r.Kind {
	case Stream:
		return r.stream()
	case Flood:
		return r.flood()
	case Ask:
		return r.ask()
	case Connect:
		return r.connect()
	default:
		return Result{}, fmt.Errorf("kind of traffic %q is not known", r.Kind)
	}
}

// serve starts all servers.
func serve(taken *sink) error {
	for port, f := range map[int]func(fd int) error{SinkPort: taken.serve, EchoPort: echo, GreetPort: greet} {
		l, err := listen(port)
		if err != nil {
			return err
		}
		go accept(l, f)
	}
	return serveFlood()
}
