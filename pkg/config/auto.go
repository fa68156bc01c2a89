package config

import (
	"encoding"
	"errors"
	"fmt"
)

// Auto is a setting that may be left to the program, which is what its zero value means and
// what is written as "auto".
type Auto[T any] struct {
	value T
	fixed bool
}

// Settings that may be "auto".
type (
	AutoDuration = Auto[Duration]
	AutoByteSize = Auto[ByteSize]
	AutoBitRate  = Auto[BitRate]
)

// Fixed returns a setting that is v, not auto.
func Fixed[T any](v T) Auto[T] { return Auto[T]{value: v, fixed: true} }

// Get returns the value; fixed is false where the setting is auto.
func (a Auto[T]) Get() (v T, fixed bool) { return a.value, a.fixed }

// Or returns the value, or automatic where the setting is auto.
func (a Auto[T]) Or(automatic T) T {
	if !a.fixed {
		return automatic
	}
	return a.value
}

// String returns the value's text, or "auto".
func (a Auto[T]) String() string {
	if !a.fixed {
		return "auto"
	}
	return fmt.Sprint(a.value)
}

// MarshalText writes what UnmarshalText reads.
func (a Auto[T]) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads "auto", or a T, which must have UnmarshalText.
func (a *Auto[T]) UnmarshalText(text []byte) error {
	if string(text) == "auto" {
		*a = Auto[T]{}
		return nil
	}
	var v T
	reader, ok := any(&v).(encoding.TextUnmarshaler)
	if !ok {
		return fmt.Errorf("%T cannot be read from text", v)
	}
	if err := reader.UnmarshalText(text); err != nil {
		var fe *FieldError
		if errors.As(err, &fe) {
			return &FieldError{Problem: fe.Problem, Want: "auto, or " + fe.Want}
		}
		return err
	}
	*a = Fixed(v)
	return nil
}
