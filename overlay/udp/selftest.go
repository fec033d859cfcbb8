package udp

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUntested says that an offload could not be tried, because loopback cannot be
// used. It may work.
var ErrUntested = errors.New("could not be tested")

// The self-test's datagrams, and how long each may take: loopback delivers before
// the sender's call returns, as a rule.
const (
	testSize    = 200
	testCount   = 4
	testPatient = 200 * time.Millisecond
)

// SelfTest sends pieces to this process over loopback, and says what is wrong with
// what arrives: nil where an offload does what it should. It cannot see what a
// network card makes of them.
func SelfTest() (gso, gro error) {
	gso, gro = testOn(unix.AF_INET)
	if errors.Is(gso, ErrUntested) {
		gso, gro = testOn(unix.AF_INET6)
	}
	return gso, gro
}

func testOn(family int) (gso, gro error) {
	to, from, addr, err := testPair(family)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrUntested, err)
		return err, err
	}
	defer unix.Close(to)
	defer unix.Close(from)
	// All of one size is what some kernels get wrong, a shorter end what others do.
	for _, short := range []int{0, 50} {
		if gso = testCut(to, from, addr, short); gso != nil {
			return gso, fmt.Errorf("%w: without UDP GSO nothing is joined on loopback", ErrUntested)
		}
	}
	if err := unix.SetsockoptInt(to, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil {
		return nil, fmt.Errorf("the kernel refuses UDP_GRO: %w", err)
	}
	return nil, testJoined(to, from, addr)
}

// testPair makes two sockets, and the address of the first.
func testPair(family int) (to, from int, addr unix.Sockaddr, err error) {
	to, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, nil, err
	}
	from, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, nil, errors.Join(err, unix.Close(to))
	}
	limit := unix.NsecToTimeval(int64(testPatient))
	local := unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if family == unix.AF_INET6 {
		local = &unix.SockaddrInet6{Addr: [16]byte{15: 1}}
	}
	err = errors.Join(unix.Bind(to, local), unix.SetsockoptTimeval(to, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	if err == nil {
		addr, err = unix.Getsockname(to)
	}
	if err == nil { // without loopback there is no way, or nothing comes
		err = unix.Sendto(from, []byte{1}, 0, addr)
	}
	if err == nil {
		_, _, err = unix.Recvfrom(to, make([]byte, 1), 0)
	}
	if err != nil {
		return 0, 0, nil, errors.Join(err, unix.Close(to), unix.Close(from))
	}
	return to, from, addr, nil
}

// testPiece makes a piece whose last datagram is that much shorter.
func testPiece(short int) []byte {
	piece := make([]byte, testCount*testSize-short)
	for i := range piece {
		piece[i] = byte(i * 7 / 3)
	}
	return piece
}

// segmentControl is the control message that has a piece cut.
func segmentControl(size int) []byte {
	oob := make([]byte, controlSize)
	putSegment(oob, size)
	return oob
}

func testCut(to, from int, addr unix.Sockaddr, short int) error {
	piece := testPiece(short)
	if err := unix.Sendmsg(from, piece, segmentControl(testSize), addr, 0); err != nil {
		return fmt.Errorf("the kernel refuses UDP_SEGMENT: %w", err)
	}
	buf := make([]byte, len(piece))
	for i := 0; len(piece) > 0; i++ {
		want := piece[:min(testSize, len(piece))]
		piece = piece[len(want):]
		n, _, err := unix.Recvfrom(to, buf, 0)
		if err != nil {
			return fmt.Errorf("datagram %d of %d does not arrive on loopback: %w", i+1, testCount, err)
		}
		if !bytes.Equal(buf[:n], want) {
			return fmt.Errorf("datagram %d of %d arrives changed on loopback, %d bytes for %d", i+1, testCount, n, len(want))
		}
	}
	return nil
}

func testJoined(to, from int, addr unix.Sockaddr) error {
	piece := testPiece(0)
	if err := unix.Sendmsg(from, piece, segmentControl(testSize), addr, 0); err != nil {
		return fmt.Errorf("%w: %w", ErrUntested, err)
	}
	buf, oob := make([]byte, len(piece)), make([]byte, controlSize)
	n, oobn, _, _, err := unix.Recvmsg(to, buf, oob, 0)
	switch {
	case err != nil:
		return fmt.Errorf("a joined piece does not arrive on loopback: %w", err)
	case n != len(piece) || groSize(oob[:oobn], n) != testSize:
		return fmt.Errorf("%d bytes arrive as datagrams of %d, want %d of %d", n, groSize(oob[:oobn], n), len(piece), testSize)
	case !bytes.Equal(buf, piece):
		return errors.New("a joined piece arrives changed on loopback")
	}
	return nil
}
