package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// The messages on switch.sock, a SOCK_SEQPACKET socket: a byte and a text.
const (
	opHandOver = 'H' // and the protocol's version, and what is wanted; to the holder of the seat
	opShow     = 'E' // likewise, of what a successor wants a first copy while that one serves on
	opRefused  = 'N' // and why; from it, as the rest
	opUnneeded = 'U' // to a stand-in, or one in reserve
	opItem     = 'F' // and a name, with descriptors
	opSeat     = 'L' // with the seat's lock; the last one
	opShown    = 'D' // there is no more to be shown
	opServing  = 'S' // to it: from now on all is the new one's
	opHeard    = 'K' // from it: so it is
)

const (
	protocol   = "1"
	maxMessage = 1024
	maxItems   = 1 << 15 // descriptors that a successor takes
	// servingTime bounds the wait for a successor that has everything.
	servingTime = 15 * time.Second
	// servingMargin is how long before the end of that a successor takes the last step
	// after which its predecessor cannot go on.
	servingMargin = 5 * time.Second
	// heardTime bounds the wait for the answer to that.
	heardTime = 5 * time.Second
)

// errNobody: nobody answers here, or one of another protocol.
var errNobody = errors.New("the agent that runs on this node is of a version that cannot hand over")

// Legacy is what came with a seat: descriptors under their names, all owned by
// whoever has the Legacy, and the connection to the one that gave them.
type Legacy struct {
	Items map[string][]int
	lock  *os.File // the Seat's
	conn  *net.UnixConn
}

// Conn is the connection to the agent that handed over. After Seat.Serving it is
// free for what the two have to say to each other, and must be closed by its user.
func (l *Legacy) Conn() *net.UnixConn { return l.conn }

// Close closes the descriptors that are left in Items.
func (l *Legacy) Close() {
	for name, fds := range l.Items {
		kernel.CloseFDs(fds)
		delete(l.Items, name)
	}
}

// request asks the holder to hand the seat over.
func request(ctx context.Context, dir string, wants []string) (_ *Legacy, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", filepath.Join(dir, switchName))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, errNobody
	case err != nil:
		return nil, err
	}
	l := &Legacy{Items: make(map[string][]int), conn: conn.(*net.UnixConn)} //nolint:forcetypeassert // of that network
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := send(l.conn, opHandOver, strings.Join(append([]string{protocol}, wants...), " ")); err != nil {
		return nil, errors.Join(err, l.conn.Close())
	}
	err = l.receive()
	if err == nil && l.lock == nil {
		err = errors.New("the agent that runs on this node shows what it has when it was asked for its seat")
	}
	if err != nil {
		l.Close()
		return nil, errors.Join(err, l.conn.Close())
	}
	return l, nil
}

// receive takes everything up to the seat.
func (l *Legacy) receive() error {
	total := 0
	for {
		op, text, fds, err := receive(l.conn)
		if errors.Is(err, io.EOF) {
			return errors.New("the agent that runs on this node went while it handed over")
		}
		if err != nil {
			return err
		}
		switch {
		case op == opItem && len(l.Items[text]) == 0 && total+len(fds) <= maxItems:
			l.Items[text] = fds
			total += len(fds)
			continue
		case op == opShown && len(fds) == 0:
			return nil
		case op == opSeat && len(fds) == 1:
			l.lock = os.NewFile(uintptr(fds[0]), lockName)
			return nil
		case op == opUnneeded:
			err = ErrNotNeeded
		case op == opRefused:
			err = fmt.Errorf("the agent that runs on this node does not hand over: %s", text)
		default:
			err = fmt.Errorf("the agent that runs on this node says %q with %d descriptors", op, len(fds))
		}
		kernel.CloseFDs(fds)
		return err
	}
}

// Show returns a first copy of what has such names with the one that serves, which
// serves on. What is returned is the caller's.
func Show(ctx context.Context, dir string, names ...string) (map[string][]int, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", filepath.Join(dir, switchName))
	if err != nil {
		return nil, fmt.Errorf("ask the agent that serves: %w", err)
	}
	l := &Legacy{Items: make(map[string][]int), conn: c.(*net.UnixConn)} //nolint:forcetypeassert // of that network
	defer l.conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err = send(l.conn, opShow, strings.Join(append([]string{protocol}, names...), " "))
	if err == nil {
		err = l.receive()
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	if l.lock != nil {
		l.Close()
		return nil, errors.Join(errors.New("the agent that serves gives its seat when it was asked for something else"), l.lock.Close())
	}
	return l.Items, nil
}

// Guests has show give those what they want that ask for a first copy of something and
// for no seat, one at a time until the context ends. failed hears of errors.
func (s *Seat) Guests(ctx context.Context, show func(*Heir) error, failed func(error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case g := <-s.guests:
			err := show(g)
			if err == nil {
				err = errors.Join(send(g.conn, opShown, ""), g.conn.Close())
			} else {
				err = errors.Join(err, g.Refuse(err))
			}
			if err != nil {
				failed(err)
			}
		}
	}
}

// Heir is a successor that waits for the seat, or a guest that only wants to be shown
// something.
type Heir struct {
	seat  *Seat
	conn  *net.UnixConn
	wants []string
}

// Words returns all that the heir has asked for.
func (h *Heir) Words() []string { return h.wants }

// Wants reports whether the heir has asked for something that not all need.
func (h *Heir) Wants(what string) bool { return slices.Contains(h.wants, what) }

// listenHeirs hears those who want the seat handed over, until it closes.
func (s *Seat) listenHeirs(l net.Listener) {
	s.accept(l, func(conn *net.UnixConn) { s.work.Go(func() { s.hear(conn) }) })
}

// hear waits with an heir until somebody attends to it.
func (s *Seat) hear(conn *net.UnixConn) {
	_ = conn.SetDeadline(time.Now().Add(leaveTime))
	heard := s.hurry(conn)
	op, text, fds, err := receive(conn)
	heard()
	kernel.CloseFDs(fds)
	version, wants, _ := strings.Cut(text, " ")
	if err == nil && (op != opHandOver && op != opShow || version != protocol) {
		err = fmt.Errorf("protocol %q is not known, only %s", version, protocol)
	} else if stays := s.stays(); err == nil && stays > 0 {
		err = fmt.Errorf("its last successor failed, so it stays for another %s", stays.Round(time.Second))
	}
	wanted := strings.Fields(wants)
	queue := s.heirs
	if op == opShow {
		queue = s.guests
	} else if err == nil && !s.offered.Load() {
		err = s.objects(wanted)
	}
	if errors.Is(err, ErrNotNeeded) {
		_ = send(conn, opUnneeded, "")
		_ = conn.Close()
		return
	}
	if err != nil {
		_ = send(conn, opRefused, err.Error())
		_ = conn.Close() // it will ask again
		return
	}
	select {
	case queue <- &Heir{s, conn, wanted}:
	case <-s.left:
		_ = conn.Close() // it asks whoever has the seat now
	case <-time.After(leaveTime): // it has given up
		_ = conn.Close()
	}
}

// objects says why one that does not want the seat from just anybody does not get it.
func (s *Seat) objects(wanted []string) error {
	switch {
	case slices.Contains(wanted, Reserve):
		return ErrNotNeeded
	case s.standIn || !slices.Contains(wanted, StandIn):
		return nil
	case s.serving.Load():
		return ErrNotNeeded
	default:
		return errors.New("it is about to serve itself") // and may fail
	}
}

// Give sends copies of descriptors under a name.
func (h *Heir) Give(name string, fds ...int) error { return send(h.conn, opItem, name, fds...) }

// Leave hands the seat over: nobody else is listened to from here on. Everything
// else must have been given before.
func (h *Heir) Leave() error {
	if err := h.seat.deafen(); err != nil {
		return err
	}
	lock, err := kernel.DupOf(h.seat.lock)
	if err != nil {
		return err
	}
	defer kernel.CloseFDs([]int{lock})
	return send(h.conn, opSeat, "", lock)
}

// Await returns nil when the heir serves, and the seat is its own. After an error
// it does not and never will, and Resume has the seat back.
func (h *Heir) Await(ctx context.Context) error {
	_ = h.conn.SetDeadline(time.Now().Add(servingTime))
	stop := context.AfterFunc(ctx, func() { _ = h.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	op, _, fds, err := receive(h.conn)
	kernel.CloseFDs(fds)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// It may have said so by now, and this process have been stopped meanwhile. Who
		// says it later gets a refusal for an answer.
		if said, ok := arrived(h.conn); ok {
			op, err = said, nil
		}
	}
	if err == nil && op == opServing {
		_ = h.conn.SetDeadline(time.Now().Add(heardTime))
		_ = send(h.conn, opHeard, "") // it is dead, or of a version that does not wait
		s := h.seat
		s.once.Do(func() {
			err = s.lock.Close() // a copy: the heir's holds
			close(s.left)
		})
		s.work.Wait()
		_ = h.conn.SetDeadline(time.Time{})
		return err
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("it has died or given up")
	}
	if err == nil {
		err = fmt.Errorf("it says %q", op)
	}
	_ = h.conn.SetDeadline(time.Now().Add(time.Second))
	_ = send(h.conn, opRefused, "it serves on, for this took too long")
	return errors.Join(fmt.Errorf("the successor does not serve: %w", err), h.conn.Close())
}

// arrived returns what a message that is there already says, without waiting.
func arrived(conn *net.UnixConn) (op byte, ok bool) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, false
	}
	buf := make([]byte, maxMessage)
	n := 0
	// Not Read, which waits for nothing once the deadline is over.
	err = raw.Control(func(fd uintptr) { n, _, err = syscall.Recvfrom(int(fd), buf, syscall.MSG_DONTWAIT) })
	return buf[0], err == nil && n > 0
}

// announce tells the agent that handed over that its heir serves, and waits for its
// answer. That it has died meanwhile is no error, nor that it says nothing: then it is
// stopped, and reads this first; nor that it closes the connection, as earlier versions
// do. That it goes on, because it did not want to wait, is one.
func announce(conn *net.UnixConn) error {
	_ = conn.SetDeadline(time.Now().Add(heardTime))
	defer func() { _ = conn.SetDeadline(time.Time{}) }()
	_ = send(conn, opServing, "") // if that one has closed it, it may have said why
	op, why, fds, rerr := receive(conn)
	kernel.CloseFDs(fds)
	if rerr == nil && op == opRefused {
		return fmt.Errorf("the agent that handed over goes on: %s", why)
	}
	return nil
}

// Conn is the connection to an heir that serves, for what the two have to say to
// each other. It must be closed by its user.
func (h *Heir) Conn() *net.UnixConn { return h.conn }

// Refuse ends an heir's wait.
func (h *Heir) Refuse(why error) error {
	return errors.Join(send(h.conn, opRefused, why.Error()), h.conn.Close())
}

// Resume has an agent whose heir failed listen again, to nobody for a while.
func (s *Seat) Resume() error {
	s.mu.Lock()
	s.stay, s.began = longer(s.stay), time.Now()
	s.mu.Unlock()
	return errors.Join(s.markServing(), s.open())
}

func send(conn *net.UnixConn, op byte, text string, fds ...int) error {
	text = strings.ToValidUTF8(text[:min(len(text), maxMessage-1)], "")
	if err := kernel.SendFDs(conn, append([]byte{op}, text...), fds...); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	return nil
}

func receive(conn *net.UnixConn) (op byte, text string, fds []int, err error) {
	buf := make([]byte, maxMessage)
	n, fds, err := kernel.RecvFDs(conn, buf)
	if err == nil && n == 0 {
		kernel.CloseFDs(fds)
		err = io.EOF
	}
	if err != nil {
		return 0, "", nil, fmt.Errorf("hand over: %w", err)
	}
	return buf[0], string(buf[1:n]), fds, nil
}
