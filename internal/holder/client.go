package holder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// answerTime bounds the wait for an answer: a holder has nothing to wait for.
const answerTime = 5 * time.Second

// Client speaks to a holder. Its methods may be called from any goroutine. After an
// error that is not the holder's own word the connection is of no use.
type Client struct {
	path string
	mu   sync.Mutex // one request at a time
	conn *net.UnixConn
}

// Path returns where the holder's socket is, "" when it has none.
func (c *Client) Path() string { return c.path }

// Dial connects to the holder at path.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, fmt.Errorf("speak to the holder: %w", err)
	}
	return &Client{path: path, conn: conn.(*net.UnixConn)}, nil //nolint:forcetypeassert // of that network
}

// Inherited returns the connection to the holder that started this process, nil when
// no holder did. It is to be called once, before other processes are started.
func Inherited() (*Client, error) {
	path := os.Getenv(inheritedEnv)
	if path == "" {
		return nil, nil //nolint:nilnil // documented
	}
	if path == noSocket {
		path = ""
	}
	if err := os.Unsetenv(inheritedEnv); err != nil {
		return nil, fmt.Errorf("speak to the holder that started this process: %w", err)
	}
	syscall.CloseOnExec(inheritedFD)
	f := os.NewFile(inheritedFD, "holder")
	defer func() { _ = f.Close() }()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("speak to the holder that started this process: %w", err)
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%s is set, but descriptor %d is no unix socket", inheritedEnv, inheritedFD), conn.Close())
	}
	return &Client{path: path, conn: u}, nil
}

// Own makes this client the owner.
func (c *Client) Own() error { return c.ask(opOwn, "") }

// Put has copies of descriptors kept under a name, in place of those that were.
func (c *Client) Put(name string, fds ...int) error { return c.ask(opPut, name, fds...) }

// Drop has a name's descriptors closed before it returns.
func (c *Client) Drop(name string) error { return c.ask(opDrop, name) }

// Settled has everything dropped that former owners put and this one did not.
func (c *Client) Settled() error { return c.ask(opSettled, "") }

// Beat says that this process lives, and will say so twice a second: if it does not
// and stands still, it is killed. Nothing happens while it is not the owner.
func (c *Client) Beat() error { return c.ask(opBeat, "") }

// Replace has another process started, which is to be handed over to.
func (c *Client) Replace() error { return c.ask(opReplace, "") }

// Goodbye has everything dropped, if this client is the owner, whose end is then
// nobody's concern.
func (c *Client) Goodbye() error { return c.ask(opGoodbye, "") }

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// ErrIncomplete is returned by All beside what could be had.
var ErrIncomplete = errors.New("not all that the holder has could be taken: this process may have too many open files")

// All returns copies of everything that is held; they are the caller's.
func (c *Client) All() (map[string][]int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.send(opGet, ""); err != nil {
		return nil, err
	}
	out := make(map[string][]int)
	var incomplete error
	for {
		// However many there are: what matters is that the holder goes on.
		if err := c.conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
			return nil, fmt.Errorf("speak to the holder: %w", err)
		}
		kind, name, fds, err := c.receive()
		if errors.Is(err, kernel.ErrTruncated) {
			incomplete = errors.Join(ErrIncomplete, err)
			continue
		}
		if err == nil && kind == saysHeld && validName(name) && out[name] == nil {
			out[name] = fds
			continue
		}
		kernel.CloseFDs(fds)
		if err == nil && kind == saysDone {
			return out, incomplete
		}
		if err == nil {
			err = fmt.Errorf("the holder says %q: %q", kind, name)
		}
		for _, fds := range out {
			kernel.CloseFDs(fds)
		}
		return nil, err
	}
}

// ask sends a request and waits for its answer.
func (c *Client) ask(op byte, name string, fds ...int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.send(op, name, fds...); err != nil {
		return err
	}
	kind, text, got, err := c.receive()
	kernel.CloseFDs(got)
	switch {
	case err != nil:
		return err
	case kind == saysDone:
		return nil
	default:
		return &RefusedError{text}
	}
}

// RefusedError is the holder's own word; the connection is fine.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "the holder refuses: " + e.Reason }

func (c *Client) send(op byte, name string, fds ...int) error {
	if err := c.conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return fmt.Errorf("speak to the holder: %w", err)
	}
	return kernel.SendFDs(c.conn, append([]byte{op}, name...), fds...)
}

func (c *Client) receive() (kind byte, text string, fds []int, err error) {
	buf := make([]byte, 2*maxMessage)
	n, fds, err := kernel.RecvFDs(c.conn, buf)
	if err == nil && n == 0 {
		err = errors.New("the holder closed the connection")
	}
	if err != nil {
		kernel.CloseFDs(fds)
		return 0, "", nil, err
	}
	return buf[0], string(buf[1:n]), fds, nil
}
