// Package wire is the language between the CNI plugin program and the agent:
// one request, one response, over a unix stream socket.
//
//	plugin                                    agent
//	  | -- length(4, big endian) JSON Request --> |   first byte carries the netns fd
//	  | <-- length(4, big endian) JSON Response - |   (SCM_RIGHTS)
//	  | -- 0x06, when Response.Ack is set ------> |   the result is on stdout
//	  | -- close ------------------------------> |
//
// The acknowledgement is what makes a killed ADD leave nothing behind: a reply
// that was written is not a reply that was read, so the agent undoes an ADD
// whose plugin went away before it said that the result is delivered.
//
// The package imports the standard library only, and little of it, because
// the plugin's start-up time is on the path of every pod. Everything read here
// is untrusted and bounded; FuzzReadRequest and the tables in wire_test.go
// hold that.
package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Bounds and fixed values of the protocol.
const (
	// Version is the protocol's version. A field may be added without a new
	// one; an agent answers every version up to its own.
	Version = 1
	// MaxConfig bounds the network configuration on stdin. Pod annotations,
	// its biggest part, are at most 256 KiB in Kubernetes.
	MaxConfig = 1 << 20
	// MaxFrame bounds a frame: a configuration and the environment.
	MaxFrame = MaxConfig + 1<<18
	// Ack is the byte that acknowledges a delivered result (ASCII ACK).
	Ack = 0x06
	// DefaultSocket is where the agent listens unless the configuration says
	// otherwise.
	DefaultSocket = "/run/netctl/cni.sock"
	// MaxSocketPath is what fits into sockaddr_un.sun_path with its NUL.
	MaxSocketPath = 107
)

// SpecVersions are the CNI specification versions that the plugin speaks,
// oldest first.
func SpecVersions() []string { return []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// Request is one call of the plugin, as the runtime made it.
type Request struct {
	Version     int    `json:"v"`
	Command     string `json:"command"`
	ContainerID string `json:"containerID,omitempty"`
	Netns       string `json:"netns,omitempty"` // the path, for results and messages; the fd is what counts
	IfName      string `json:"ifname,omitempty"`
	Args        string `json:"args,omitempty"` // CNI_ARGS
	// BudgetMS is how long the plugin waits for the answer.
	BudgetMS int64           `json:"budgetMS,omitempty"`
	Config   json.RawMessage `json:"config,omitempty"` // stdin
}

// Response is what the plugin prints and how it exits.
type Response struct {
	Exit   int             `json:"exit"`
	Output json.RawMessage `json:"output,omitempty"`
	// Ack asks for the acknowledgement byte once Output is written.
	Ack bool `json:"ack,omitempty"`
}

// ErrTooLong reports a frame beyond MaxFrame.
var ErrTooLong = errors.New("frame is too long")

// Frame returns v as one frame.
func Frame(v any) ([]byte, error) {
	var b bytes.Buffer
	b.Write([]byte{0, 0, 0, 0})
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // would blow up a configuration six-fold
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode frame: %w", err)
	}
	n := b.Len() - 4
	if n > MaxFrame {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, n, MaxFrame)
	}
	binary.BigEndian.PutUint32(b.Bytes(), uint32(n))
	return b.Bytes(), nil
}

// ReadFrame reads one frame's payload.
func ReadFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("read frame length: %w", err)
	}
	return ReadBody(r, head)
}

// ReadBody reads the payload of the frame whose length has been read already.
func ReadBody(r io.Reader, head [4]byte) ([]byte, error) {
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxFrame {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, n, MaxFrame)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("read frame: %w", err)
	}
	return body, nil
}

// DecodeRequest decodes and validates a request's payload.
func DecodeRequest(body []byte) (*Request, *Error) {
	var r Request
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, Errorf(CodeDecode, "the plugin's request cannot be decoded: %v", err)
	}
	if r.Version < 1 || r.Version > Version {
		return nil, Errorf(CodeInternal, "the plugin speaks protocol %d, this agent speaks up to %d: "+
			"let the agent install its own plugin binary", r.Version, Version)
	}
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return &r, nil
}

// DecodeResponse decodes a response's payload.
func DecodeResponse(body []byte) (*Response, error) {
	var r Response
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("decode response: %w", err)
	}
	return &r, nil
}
