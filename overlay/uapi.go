package overlay

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// WireGuard is configured in its cross-platform text protocol,
// https://www.wireguard.com/xplatform: lines of key=value.

// deviceConfig is the text that gives the device its identity.
func deviceConfig(key PrivateKey, port uint16) string {
	return fmt.Sprintf("private_key=%s\nlisten_port=%d\n", key.hex(), port)
}

// change is what turns the device's peers into the wanted ones.
type change struct {
	text  string // empty: nothing to do
	greet []Key  // new peers and peers with a new endpoint
	added []Key  // new peers
	gone  []Key  // removed peers
}

// diff compares what the device has with what is wanted. An allowed IP that
// changes hands is never without an owner: all additions come first, and
// adding takes it from its old peer; only then is removed what nobody wants,
// from peers that stay, and last the peers that go.
func diff(have map[Key]PeerStatus, want []Peer) change {
	var (
		c       change
		out     strings.Builder
		wanted  = make(map[netip.Prefix]bool)
		present = make(map[Key]bool, len(want))
	)
	for _, p := range want {
		present[p.PublicKey] = true
		for _, prefix := range p.AllowedIPs {
			wanted[prefix] = true
		}
		old, exists := have[p.PublicKey]
		newEndpoint := !exists || old.Endpoint != p.Endpoint
		if !exists {
			c.added = append(c.added, p.PublicKey)
		}
		if newEndpoint {
			c.greet = append(c.greet, p.PublicKey)
		}
		addition(&out, p, old, exists)
	}
	for _, key := range sortedKeys(have) {
		old := have[key]
		if !present[key] {
			c.gone = append(c.gone, key)
			continue
		}
		stale := slices.DeleteFunc(slices.Clone(old.AllowedIPs), func(p netip.Prefix) bool { return wanted[p] })
		if len(stale) == 0 {
			continue
		}
		fmt.Fprintf(&out, "public_key=%s\nupdate_only=true\n", key.hex())
		for _, prefix := range stale {
			fmt.Fprintf(&out, "allowed_ip=-%s\n", prefix)
		}
	}
	for _, key := range c.gone {
		fmt.Fprintf(&out, "public_key=%s\nremove=true\n", key.hex())
	}
	c.text = out.String()
	return c
}

// addition writes what p lacks.
func addition(out *strings.Builder, p Peer, old PeerStatus, exists bool) {
	missing := slices.DeleteFunc(slices.Clone(p.AllowedIPs), func(prefix netip.Prefix) bool {
		return slices.Contains(old.AllowedIPs, prefix)
	})
	moved := !exists || old.Endpoint != p.Endpoint
	if !moved && len(missing) == 0 {
		return
	}
	fmt.Fprintf(out, "public_key=%s\n", p.PublicKey.hex())
	if exists {
		out.WriteString("update_only=true\n")
	}
	if moved {
		fmt.Fprintf(out, "endpoint=%s\n", endpointText(p))
	}
	for _, prefix := range missing {
		fmt.Fprintf(out, "allowed_ip=%s\n", prefix)
	}
}

func sortedKeys(m map[Key]PeerStatus) []Key {
	keys := make([]Key, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b Key) int { return slices.Compare(a[:], b[:]) })
	return keys
}

// parseStatus reads the device's answer to "get". It returns the peers,
// without their nodes' names, and the port.
func parseStatus(text string) (peers map[Key]PeerStatus, port uint16, err error) {
	peers = make(map[Key]PeerStatus)
	var current *PeerStatus
	keep := func() {
		if current != nil {
			peers[current.PublicKey] = *current
		}
	}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), "=")
		if !ok {
			return nil, 0, errors.New("line without =") // it may hold a secret: not quoted
		}
		switch {
		case name == "public_key":
			keep()
			current = new(PeerStatus)
			err = parseHexKey(&current.PublicKey, value)
		case name == "listen_port" && current == nil:
			var n uint64
			n, err = strconv.ParseUint(value, 10, 16)
			port = uint16(n)
		case current != nil:
			err = current.set(name, value)
		}
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", name, err)
		}
	}
	keep()
	return peers, port, nil
}

func parseHexKey(k *Key, s string) error {
	if len(s) != hex.EncodedLen(keyLen) {
		return errors.New("wrong length")
	}
	_, err := hex.Decode(k[:], []byte(s))
	return err
}

// set takes one line of a peer's status; names that say nothing to us pass.
func (s *PeerStatus) set(name, value string) (err error) {
	var n int64
	switch name {
	case "endpoint":
		s.Endpoint, err = netip.ParseAddrPort(value)
	case "allowed_ip":
		var p netip.Prefix
		p, err = netip.ParsePrefix(value)
		s.AllowedIPs = append(s.AllowedIPs, p)
	case "last_handshake_time_sec":
		if n, err = strconv.ParseInt(value, 10, 64); n > 0 {
			s.LastHandshake = time.Unix(n, 0)
		}
	case "last_handshake_time_nsec":
		if n, err = strconv.ParseInt(value, 10, 64); n > 0 {
			s.LastHandshake = s.LastHandshake.Add(time.Duration(n))
		}
	case "tx_bytes":
		s.TxBytes, err = strconv.ParseUint(value, 10, 64)
	case "rx_bytes":
		s.RxBytes, err = strconv.ParseUint(value, 10, 64)
	}
	return err
}
