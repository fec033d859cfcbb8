package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// ServeVariable in the environment makes a program that calls Child the servers of
// an Introducer. They are a process of their own, for with ten thousand connections
// both ends have more descriptors than one process may.
const ServeVariable = "NETCTL_RESTART_SERVE"

// spare is how many descriptors a process needs besides the connections at stake.
const spare = 2000

// Room returns an error when this process may not have so many connections.
func Room(connections int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	if want := uint64(connections + spare); limit.Max < want {
		return fmt.Errorf("%d connections need %d open files and the limit is %d: raise it with 'ulimit -n %d', or choose fewer", connections, want, limit.Max, want)
	}
	return nil
}

// Introducer is a TCP server at several places, which says its place's name first
// and again for every line that it hears: who is spoken to is who was reached.
type Introducer struct {
	cmd *exec.Cmd
	in  io.Closer
}

// Introduce starts the servers: this very program, with ServeVariable.
func Introduce(places []*Place) (*Introducer, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	var args []string
	for _, p := range places {
		args = append(args, p.Name+"="+p.Path)
	}
	i := &Introducer{cmd: exec.Command(exe, args...)} //nolint:noctx // ends with its standard input
	i.cmd.Env = append(os.Environ(), ServeVariable+"=1")
	i.cmd.Stderr = os.Stderr
	if i.in, err = i.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start the servers: %w", err)
	}
	out, err := i.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the servers: %w", err)
	}
	if err := i.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the servers: %w", err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != ready {
		return nil, errors.Join(fmt.Errorf("start the servers: they said %q", line), err, i.Close())
	}
	return i, nil
}

// Close ends the servers.
func (i *Introducer) Close() error {
	if err := errors.Join(i.in.Close(), i.cmd.Wait()); err != nil {
		return fmt.Errorf("end the servers: %w", err)
	}
	return nil
}

const ready = "ready\n"

// Child serves, as Introduce wants it, until its standard input ends.
func Child(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	for _, arg := range args {
		name, path, _ := strings.Cut(arg, "=")
		p, err := Enter(name, path, netip.Addr{})
		if err != nil {
			return err
		}
		l, err := p.listen(ctx, TalkPort)
		if err != nil {
			return err
		}
		go accept(ctx, l, func(c net.Conn) { introduce(c, name) })
	}
	if _, err := io.WriteString(out, ready); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, in)
	return err
}

// accept serves every connection until the listener is closed.
func accept(ctx context.Context, l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			wait(ctx, 10*time.Millisecond) // such as too many open files
			continue
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

func introduce(c net.Conn, name string) {
	answer := []byte(name + "\n")
	buf := make([]byte, 16)
	for n := 1; ; {
		for range n {
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
		size, err := c.Read(buf)
		if err != nil {
			return
		}
		n = strings.Count(string(buf[:size]), "\n")
	}
}

// errWrong is returned when somebody else answers than before.
var errWrong = errors.New("somebody else answers")

// conversation is a connection to an Introducer.
type conversation struct {
	conn *net.TCPConn
	with string // the name of who answers
}

// converse opens one and hears who it is.
func converse(from *Place, to netip.AddrPort, patience time.Duration) (*conversation, error) {
	end := time.Now().Add(patience)
	conn, err := from.dial(to, patience)
	if err != nil {
		return nil, err
	}
	c := &conversation{conn: conn}
	if c.with, err = c.hear(end); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

// Reach returns nil when somebody answers on a way.
func Reach(w Way) error {
	c, err := converse(w.From, netip.AddrPortFrom(w.To, TalkPort), time.Second)
	if err != nil {
		return fmt.Errorf("%s: %w", w, err)
	}
	return c.close()
}

// hear reads a line.
func (c *conversation) hear(end time.Time) (string, error) {
	if err := c.conn.SetDeadline(end); err != nil {
		return "", err
	}
	var line []byte
	buf := make([]byte, 64)
	for {
		n, err := c.conn.Read(buf)
		line = append(line, buf[:n]...)
		if text, ok := strings.CutSuffix(string(line), "\n"); ok {
			return text, nil
		}
		if err != nil {
			return "", err
		}
	}
}

// speak says something and hears the answer, of who has to be the same.
func (c *conversation) speak(patience time.Duration) error {
	end := time.Now().Add(patience)
	if err := c.conn.SetDeadline(end); err != nil {
		return err
	}
	if _, err := c.conn.Write([]byte("\n")); err != nil {
		return err
	}
	who, err := c.hear(end)
	if err == nil && who != c.with {
		err = fmt.Errorf("%w: %s, not %s", errWrong, who, c.with)
	}
	return err
}

func (c *conversation) close() error { return c.conn.Close() }
