package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// clientTimeout bounds one question of the built-in clients.
const clientTimeout = 5 * time.Second

// Fetch asks a built-in server over HTTP, on a connection of its own.
func Fetch(ctx context.Context, url string) (Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return Reply{}, fmt.Errorf("fetch %s: %w", url, err)
	}
	req.Header.Set("Accept", "application/json")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return Reply{}, fmt.Errorf("fetch: %w", err)
	}
	defer res.Body.Close()
	var r Reply
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&r); err != nil {
		return Reply{}, fmt.Errorf("fetch %s: %s, not an answer of the lab's server: %w", url, res.Status, err)
	}
	return r, nil
}

// Send sends text to an echo server over "tcp" or "udp" and returns the line it
// introduces itself with.
func Send(ctx context.Context, network, addr, text string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return "", fmt.Errorf("send: %w", err)
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return "", fmt.Errorf("send: %w", err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		return "", fmt.Errorf("send: %w", err)
	}
	r := bufio.NewReaderSize(c, maxDatagram)
	line, err := r.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("send to %s: no introduction: %w", addr, err)
	}
	echo := make([]byte, len(text))
	if _, err := io.ReadFull(r, echo); err != nil {
		return "", fmt.Errorf("send to %s: no echo: %w", addr, err)
	}
	if string(echo) != text {
		return "", fmt.Errorf("send to %s: sent %q, got %q back", addr, text, echo)
	}
	return strings.TrimSpace(line), nil
}

// Ping sends one ICMP echo request and returns how long the reply took. It
// needs CAP_NET_RAW or a ping_group_range that includes the caller.
func Ping(ctx context.Context, target string) (time.Duration, error) {
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", target)
	if err != nil {
		return 0, fmt.Errorf("ping: %w", err)
	}
	a := ips[0].Unmap()
	network, listen, proto := "ip4:icmp", "0.0.0.0", 1
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if a.Is6() {
		network, listen, proto = "ip6:ipv6-icmp", "::", 58
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	c, err := icmp.ListenPacket(network, listen)
	if err != nil {
		return 0, fmt.Errorf("ping %s: %w", a, err)
	}
	defer c.Close()
	id := os.Getpid() & 0xffff
	msg := icmp.Message{Type: request, Body: &icmp.Echo{ID: id, Seq: 1, Data: []byte("netctl lab")}}
	wire, err := msg.Marshal(nil)
	if err != nil {
		return 0, fmt.Errorf("ping %s: %w", a, err)
	}
	start := time.Now()
	if err := c.SetDeadline(start.Add(clientTimeout)); err != nil {
		return 0, fmt.Errorf("ping %s: %w", a, err)
	}
	if _, err := c.WriteTo(wire, &net.IPAddr{IP: a.AsSlice()}); err != nil {
		return 0, fmt.Errorf("ping: %w", err)
	}
	buf := make([]byte, maxDatagram)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return 0, fmt.Errorf("ping %s: %w", a, err)
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil {
			continue
		}
		if echo, ok := m.Body.(*icmp.Echo); ok && m.Type == reply && echo.ID == id {
			return time.Since(start), nil
		}
	}
}

// ErrRefused reports whether an error of the clients means that the other side
// said no, as opposed to nothing.
func ErrRefused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && strings.Contains(err.Error(), "connection refused")
}
