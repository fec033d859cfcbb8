package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/netctl/netctl/cni/wire"
)

func TestFrameRoundTrip(t *testing.T) {
	t.Parallel()
	want := wire.Request{Version: 1, Command: "ADD", ContainerID: "a", Netns: "/x", IfName: "eth0", Config: json.RawMessage(`{"a":"<&>"}`)}
	frame, err := wire.Frame(&want)
	if err != nil {
		t.Fatal(err)
	}
	body, err := wire.ReadFrame(bytes.NewReader(frame))
	if err != nil {
		t.Fatal(err)
	}
	got, werr := wire.DecodeRequest(body)
	if werr != nil {
		t.Fatal(werr)
	}
	if string(got.Config) != string(want.Config) || got.ContainerID != want.ContainerID {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for i := range frame {
		if _, err := wire.ReadFrame(bytes.NewReader(frame[:i])); err == nil {
			t.Errorf("frame cut at %d passed", i)
		}
	}
}

func TestFrameBound(t *testing.T) {
	t.Parallel()
	// A configuration of the largest size fits, whatever is in it.
	config := json.RawMessage(`"` + strings.Repeat("<", wire.MaxConfig-2) + `"`)
	if _, err := wire.Frame(&wire.Request{Version: 1, Config: config}); err != nil {
		t.Errorf("largest configuration: %v", err)
	}
	if _, err := wire.Frame(&wire.Response{Output: json.RawMessage(`"` + strings.Repeat("a", wire.MaxFrame) + `"`)}); !errors.Is(err, wire.ErrTooLong) {
		t.Errorf("got %v, want ErrTooLong", err)
	}
	if _, err := wire.ReadFrame(bytes.NewReader([]byte{0xff, 0, 0, 0})); !errors.Is(err, wire.ErrTooLong) {
		t.Errorf("got %v, want ErrTooLong", err)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]bool{
		"": false, "a": true, "0": true, "cni-0_1.x": true, ".a": false, "-a": false, "_a": false, "a/b": false,
		"a,b": false, "a b": false, "a\x00": false, "ä": false, "..": false,
		strings.Repeat("a", wire.MaxContainerID): true, strings.Repeat("a", wire.MaxContainerID+1): false,
	} {
		if got := wire.ValidContainerID(id); got != want {
			t.Errorf("container %.20q: got %v, want %v", id, got, want)
		}
	}
	for name, want := range map[string]bool{
		"": false, "eth0": true, ".": false, "..": false, "a/b": false, "a:b": false, "a b": false, "eth%d": false,
		"a\tb": false, "a\x7f": false, "é": false, strings.Repeat("e", 15): true, strings.Repeat("e", 16): false, "a,b": true,
	} {
		if got := wire.ValidIfName(name); got != want {
			t.Errorf("interface %q: got %v, want %v", name, got, want)
		}
	}
}

func TestErrorJSON(t *testing.T) {
	t.Parallel()
	e := wire.Errorf(wire.CodeTryAgain, "wait %d s", 5)
	e.Details = "x"
	if got, want := string(e.JSON()), `{"cniVersion":"1.1.0","code":11,"msg":"wait 5 s","details":"x"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if e.CNIVersion != "" {
		t.Error("JSON changed the error")
	}
	if got, want := e.Error(), "wait 5 s: x"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzReadRequest(f *testing.F) {
	frame, err := wire.Frame(&wire.Request{Version: 1, Command: "DEL", ContainerID: "a", IfName: "eth0"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frame)
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, b []byte) {
		body, err := wire.ReadFrame(bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(body) > wire.MaxFrame {
			t.Errorf("%d bytes passed", len(body))
		}
		r, werr := wire.DecodeRequest(body)
		if werr != nil {
			if !json.Valid(werr.JSON()) {
				t.Errorf("error is no JSON: %s", werr.JSON())
			}
			return
		}
		if r.ContainerID != "" && !wire.ValidContainerID(r.ContainerID) || r.IfName != "" && !wire.ValidIfName(r.IfName) {
			t.Errorf("invalid names passed: %+v", r)
		}
		again, err := wire.Frame(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, werr := wire.DecodeRequest(again[4:]); werr != nil {
			t.Errorf("not decoded again: %v", werr)
		}
	})
}

func FuzzDecodeResponse(f *testing.F) {
	f.Add([]byte(`{"exit":1,"output":{"code":11},"ack":true}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := wire.DecodeResponse(b); err == nil && len(r.Output) > 0 && !json.Valid(r.Output) {
			t.Errorf("output is no JSON: %s", r.Output)
		}
	})
}
