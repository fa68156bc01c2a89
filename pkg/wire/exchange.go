package wire

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"dandelion/pkg/id"
)

// System is a box's system information. NaN stands for what the box did not say; make it with
// UnknownSystem, because the zero value claims zeros.
type System struct {
	CPUMHz, CPUCount                                     float64
	CPUUser, CPUSystem, CPUNice, CPUIdle                 float64 // percent
	CPUIOWait, CPUIRQ, CPUSoftIRQ                        float64 // percent
	Load1, Load5, Load15                                 float64
	MemTotal, MemAvailable                               float64 // MB
	DiskTotal, DiskAvailable                             float64 // GB
	NetUp, NetDown, NetCapacity                          float64 // bytes/s: now, now, what the uplink can carry
	StorageTotal, StorageFree, StorageLimit, StorageUsed float64 // bytes
}

// systemField ties a field of System to its name in EXCHANGE. The old protocol's are sent as
// strings, ours as numbers (docs/protocol.md).
type systemField struct {
	name string
	old  bool
	of   func(*System) *float64
}

var systemFields = []systemField{
	{"CPU-HZ", true, func(s *System) *float64 { return &s.CPUMHz }},
	{"CPU-NUM", true, func(s *System) *float64 { return &s.CPUCount }},
	{"CPU-USR", true, func(s *System) *float64 { return &s.CPUUser }},
	{"CPU-SYS", true, func(s *System) *float64 { return &s.CPUSystem }},
	{"CPU-NIC", true, func(s *System) *float64 { return &s.CPUNice }},
	{"CPU-IDLE", true, func(s *System) *float64 { return &s.CPUIdle }},
	{"CPU-IO", true, func(s *System) *float64 { return &s.CPUIOWait }},
	{"CPU-IRQ", true, func(s *System) *float64 { return &s.CPUIRQ }},
	{"CPU-SIRQ", true, func(s *System) *float64 { return &s.CPUSoftIRQ }},
	{"LOADAVG-1", true, func(s *System) *float64 { return &s.Load1 }},
	{"LOADAVG-5", true, func(s *System) *float64 { return &s.Load5 }},
	{"LOADAVG-15", true, func(s *System) *float64 { return &s.Load15 }},
	{"MEM-TOTAL", true, func(s *System) *float64 { return &s.MemTotal }},
	{"MEM-AVAIL", true, func(s *System) *float64 { return &s.MemAvailable }},
	{"DISK-TOTAL", true, func(s *System) *float64 { return &s.DiskTotal }},
	{"DISK-AVAIL", true, func(s *System) *float64 { return &s.DiskAvailable }},
	{"NET-UP", false, func(s *System) *float64 { return &s.NetUp }},
	{"NET-DOWN", false, func(s *System) *float64 { return &s.NetDown }},
	{"NET-CAPACITY", false, func(s *System) *float64 { return &s.NetCapacity }},
	{"STORAGE-TOTAL", false, func(s *System) *float64 { return &s.StorageTotal }},
	{"STORAGE-FREE", false, func(s *System) *float64 { return &s.StorageFree }},
	{"STORAGE-LIMIT", false, func(s *System) *float64 { return &s.StorageLimit }},
	{"STORAGE-USED", false, func(s *System) *float64 { return &s.StorageUsed }},
}

// They are found by their names, and by their names as they stand in JSON.
var systemFieldByName, systemFieldByQuoted = func() (byName, byQuoted map[string]*systemField) {
	byName, byQuoted = make(map[string]*systemField), make(map[string]*systemField)
	for i := range systemFields {
		f := &systemFields[i]
		byName[f.name], byQuoted[`"`+f.name+`"`] = f, f
	}
	return byName, byQuoted
}()

// UnknownSystem returns a System of which nothing is known.
func UnknownSystem() System {
	var s System
	for _, f := range systemFields {
		*f.of(&s) = math.NaN()
	}
	return s
}

// GeoIP is where an address is. LOC is "lat,lon".
type GeoIP struct {
	IP       string `json:"IP,omitzero"`
	Hostname string `json:"HOSTNAME,omitzero"`
	Country  string `json:"COUNTRY,omitzero"`
	City     string `json:"CITY,omitzero"`
	Region   string `json:"REGION,omitzero"`
	Org      string `json:"ORG,omitzero"`
	Loc      string `json:"LOC,omitzero"`
}

// Exchange is a box's report to an entrance, and what an entrance says of a box to publishers.
type Exchange struct {
	Peer
	ConnectWS string // http or https URL of the box's websocket
	EdgeURL   string // base URL for viewers; "" from an old box: see EdgeBase
	Features  Features
	GeoIP     GeoIP
	System    System

	// Deliveries are the traffic logs by their key, "<box-id>:TRAFFIC_FLOW:log-<hex>".
	// Flat leaves them out: they are accounts, not facts about the box.
	Deliveries map[string]Delivery
	// Traffic, with FeatureTraffic: what Deliveries are. nil from an old box, and where there are none.
	Traffic *Traffic
}

// Delivery is one line of a box's traffic log: the first four fields as the old protocol has them. An
// entrance with FeatureTraffic also gets the others.
type Delivery struct {
	URL      string `json:"url"` // path on the box: /<publisher>/<path>
	Status   Text   `json:"status"`
	Size     Text   `json:"size"`     // bytes of the body that were sent
	Datetime string `json:"datetime"` // 27/Sep/2017:03:20:10, UTC
	// Count is how many deliveries of the same URL, status and Network this line stands for, Size being
	// their sum; 0 is 1.
	Count int64 `json:"count,omitzero"`
	// Network is the viewer's address cut to /24 or /48, such as 203.0.113.0/24; "": not known.
	Network string `json:"network,omitzero"`
}

// DeliveryTime is the layout of Datetime.
const DeliveryTime = "02/Jan/2006:15:04:05"

const trafficInfix = ":TRAFFIC_FLOW:log-"

// DecodeExchange reads an EXCHANGE of an old or a new box and checks every field that it
// knows. Fields that it does not know are passed over. Errors wrap ErrFormat and name the
// field. Whether the URLs may be dialled is the entrance's to decide.
func DecodeExchange(message []byte) (x Exchange, err error) {
	err = x.Decode(message)
	return x, err
}

// Decode is DecodeExchange into x, of which nothing is left. It is for whoever keeps x on the heap.
func (x *Exchange) Decode(message []byte) error {
	*x = Exchange{System: UnknownSystem()}
	if err := x.decode(message); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if _, err := id.ParseBoxID(x.ID); err != nil {
		return fmt.Errorf("%w: ID: %w", ErrFormat, err)
	}
	if x.ConnectWS == "" {
		return fmt.Errorf("%w: CONNECT_WS is missing or empty", ErrFormat)
	}
	return nil
}

func (x *Exchange) decode(message []byte) error {
	dec := borrowDecoder(message)
	defer returnDecoder(dec)
	if tok, err := dec.ReadToken(); err != nil || tok.Kind() != '{' {
		return errors.New("not a JSON object")
	}
	for dec.PeekKind() == '"' {
		if err := x.decodeField(dec); err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

func (x *Exchange) decodeField(dec *decoder) error {
	quoted, err := dec.ReadValue()
	if err != nil {
		return err
	}
	// Most fields are numbers of the system: their names are not copied.
	field := systemFieldByQuoted[string(quoted)]
	var name string
	if field == nil {
		if name, err = stringOf(quoted); err != nil {
			return err
		}
		field = systemFieldByName[name] // written with escapes
	}
	value, err := dec.ReadValue()
	if err != nil {
		return err
	}
	if field != nil {
		name = field.name
		*field.of(&x.System), err = numberOf(value)
	} else {
		err = x.set(name, value)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", id.Quote(name), err)
	}
	return nil
}

func (x *Exchange) set(name string, value jsontext.Value) error {
	switch name {
	case "GEOIP":
		return x.setGeoIP(value)
	case "FEATURES":
		return x.setFeatures(value)
	case "TRAFFIC":
		x.Traffic = new(Traffic)
		if err := json.Unmarshal(value, x.Traffic); err != nil {
			return errors.New("want an object with BOOT and SEQ")
		}
		return x.Traffic.Check()
	}
	if dest := x.textField(name); dest != nil {
		text, err := textOf(value)
		if err != nil {
			return err
		}
		*dest = text
		return nil
	}
	if strings.Contains(name, trafficInfix) && value.Kind() == '{' {
		if !strings.HasPrefix(name, x.ID+trafficInfix) && x.ID != "" || len(name) > MaxField {
			return fmt.Errorf("a traffic log's key must begin with the box's ID")
		}
		var d Delivery
		if err := json.Unmarshal(value, &d); err != nil {
			return err
		}
		if x.Deliveries == nil {
			x.Deliveries = make(map[string]Delivery)
		}
		x.Deliveries[name] = d
	}
	return nil
}

func (x *Exchange) textField(name string) *string {
	switch name {
	case "ID":
		return &x.ID
	case "IP":
		return &x.IP
	case "PORT":
		return (*string)(&x.Port)
	case "TYPE":
		return &x.Type
	case "CONNECT_WS":
		return &x.ConnectWS
	case "EDGE_URL":
		return &x.EdgeURL
	}
	return nil
}

// setGeoIP takes the object that boxes send and the JSON text that Flat makes of it. An old
// box may send anything here; what is not an object of strings is no place.
func (x *Exchange) setGeoIP(value jsontext.Value) error {
	if value.Kind() == '"' {
		var text string
		if err := json.Unmarshal(value, &text); err != nil {
			return err
		}
		value = jsontext.Value(text)
	}
	if value.Kind() != '{' {
		return nil
	}
	return x.GeoIP.decode(value)
}

// decode reads an object of strings. Names that it does not know are passed over.
func (g *GeoIP) decode(object jsontext.Value) error {
	dec := borrowDecoder(object)
	defer returnDecoder(dec)
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for dec.PeekKind() == '"' {
		name, err := dec.ReadToken()
		if err != nil {
			return err
		}
		dest := g.field(name.String())
		value, err := dec.ReadValue()
		switch {
		case err != nil:
			return err
		case dest == nil || value.Kind() == 'n':
			continue
		case value.Kind() != '"':
			return errors.New("want an object of strings")
		}
		if *dest, err = textOf(value); err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

func (g *GeoIP) field(name string) *string {
	switch name {
	case "IP":
		return &g.IP
	case "HOSTNAME":
		return &g.Hostname
	case "COUNTRY":
		return &g.Country
	case "CITY":
		return &g.City
	case "REGION":
		return &g.Region
	case "ORG":
		return &g.Org
	case "LOC":
		return &g.Loc
	}
	return nil
}

// oursEncoded is what nearly every new peer sends, oursDecoded what it means; never changed.
var oursEncoded, oursDecoded = string(Encode(Ours())), slices.Clip(Ours())

func (x *Exchange) setFeatures(value jsontext.Value) error {
	if string(value) == oursEncoded {
		x.Features = oursDecoded
		return nil
	}
	if value.Kind() == '"' {
		text, err := textOf(value)
		if err != nil {
			return err
		}
		for name := range strings.SplitSeq(text, ",") {
			x.Features = append(x.Features, Feature(name))
		}
		return nil
	}
	if err := json.Unmarshal(value, &x.Features); err != nil {
		return fmt.Errorf("want a list of names")
	}
	if len(x.Features) > MaxFeatures {
		return fmt.Errorf("more than %d names", MaxFeatures)
	}
	return nil
}

// textOf returns a string, or a number as its text, of at most MaxField bytes.
func textOf(value jsontext.Value) (string, error) {
	if len(value) > 6*MaxField+2 { // all of it escapes
		return "", errLongText
	}
	var text string
	var err error
	switch value.Kind() {
	case '0':
		text = string(value)
	case '"':
		text, err = stringOf(value)
	default:
		err = errNoText
	}
	if err == nil && len(text) > MaxField {
		err = errLongText
	}
	return text, err
}

var (
	errNoText   = errors.New("want a string or a number")
	errLongText = fmt.Errorf("longer than %d bytes", MaxField)
)

// stringOf returns a JSON string that a decoder has read.
func stringOf(value jsontext.Value) (text string, err error) {
	if bytes.IndexByte(value, '\\') < 0 && utf8.Valid(value) { // as nearly all are
		return string(value[1 : len(value)-1]), nil
	}
	err = json.Unmarshal(value, &text, jsontext.AllowInvalidUTF8(true))
	return text, err
}

// numberOf is parseNumber of a string or a number, without a copy where it is plain digits.
func numberOf(value jsontext.Value) (float64, error) {
	if digits := bytes.Trim(value, `"`); len(digits) < 32 {
		if v, err := strconv.ParseFloat(string(digits), 64); err == nil && v >= 0 && !math.IsInf(v, 0) {
			return v, nil
		}
	}
	text, err := textOf(value)
	if err != nil {
		return 0, err
	}
	return parseNumber(text)
}

// parseNumber reads a finite number that is not negative, with or without one of the units
// that the old box appends; an empty text is unknown.
func parseNumber(text string) (float64, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return math.NaN(), nil
	}
	digits := strings.TrimRight(text, "%abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	v, err := strconv.ParseFloat(digits, 64)
	if err != nil || math.IsInf(v, 0) || math.IsNaN(v) || v < 0 {
		return 0, fmt.Errorf("%s is not a number of 0 or more", id.Quote(text))
	}
	return v, nil
}

// Flat returns the exchange as the flat map of strings that Redis and BOX_SET hold: GEOIP as
// JSON text and FEATURES joined by commas. What is unknown is left out.
func (x *Exchange) Flat() map[string]string {
	flat := make(map[string]string, len(systemFields)+8)
	x.EachFlat(func(name, value string) { flat[name] = value })
	return flat
}

// EachFlat calls yield with each name and value of Flat once, in an order that is always the same.
func (x *Exchange) EachFlat(yield func(name, value string)) {
	x.EachChange(nil, func(name, value string, _ bool) { yield(name, value) })
}

// EachChange calls yield with what differs between the Flat of before and that of x: a name, its
// value now ("" for one that is not there any more), and whether before had none. A nil before
// has nothing.
func (x *Exchange) EachChange(before *Exchange, yield func(name, value string, appears bool)) {
	if before == nil {
		before = &nothing
		yield("COMMAND", CommandExchange, true)
	}
	put := func(name, was, is string) {
		if was != is {
			yield(name, is, was == "")
		}
	}
	put("ID", before.ID, x.ID)
	put("IP", before.IP, x.IP)
	put("PORT", string(before.Port), string(x.Port))
	put("TYPE", before.Type, x.Type)
	put("CONNECT_WS", before.ConnectWS, x.ConnectWS)
	put("EDGE_URL", before.EdgeURL, x.EdgeURL)
	if before.GeoIP != x.GeoIP {
		put("GEOIP", before.GeoIP.flat(), x.GeoIP.flat())
	}
	if !slices.Equal(before.Features, x.Features) {
		put("FEATURES", before.Features.flat(), x.Features.flat())
	}
	for _, f := range systemFields {
		was, is := *f.of(&before.System), *f.of(&x.System)
		if was != is && !(math.IsNaN(was) && math.IsNaN(is)) {
			yield(f.name, formatNumber(is), math.IsNaN(was))
		}
	}
}

// nothing is an exchange that says nothing.
var nothing = Exchange{System: UnknownSystem()}

func (g *GeoIP) flat() string {
	if *g == (GeoIP{}) {
		return ""
	}
	return string(Encode(*g))
}

func (fs Features) flat() string {
	names := make([]string, len(fs))
	for i, f := range fs {
		names[i] = string(f)
	}
	return strings.Join(names, ",")
}

// ExchangeFromFlat reads what Flat made, or a flat map of another implementation. Errors as in
// DecodeExchange.
func ExchangeFromFlat[S ~string](flat map[string]S) (Exchange, error) {
	// The JSON decoder is the one place that validates; a flat map is a small object.
	return DecodeExchange(Encode(flat))
}

// MarshalJSONTo writes the EXCHANGE that a box sends: the old fields as strings, ours as
// numbers, GEOIP as an object, the deliveries beside them.
func (x *Exchange) MarshalJSONTo(enc *jsontext.Encoder) error {
	fields := map[string]any{
		"ID": x.ID, "IP": x.IP, "PORT": x.Port, "TYPE": x.Type, "COMMAND": CommandExchange,
		"CONNECT_WS": x.ConnectWS,
	}
	if x.EdgeURL != "" {
		fields["EDGE_URL"] = x.EdgeURL
	}
	if len(x.Features) > 0 {
		fields["FEATURES"] = x.Features
	}
	if x.GeoIP != (GeoIP{}) {
		fields["GEOIP"] = x.GeoIP
	}
	for _, f := range systemFields {
		switch v := *f.of(&x.System); {
		case f.old:
			fields[f.name] = formatNumber(v)
		case !math.IsNaN(v):
			fields[f.name] = v
		}
	}
	if x.Traffic != nil {
		fields["TRAFFIC"] = x.Traffic
	}
	for key, d := range x.Deliveries {
		fields[key] = d
	}
	return json.MarshalEncode(enc, fields, json.Deterministic(true))
}

// formatNumber prints at most two digits behind the point; NaN is "".
func formatNumber(v float64) string {
	if math.IsNaN(v) {
		return ""
	}
	return strconv.FormatFloat(math.Round(v*100)/100, 'f', -1, 64)
}

// SystemMap returns what is known of the system by the names of EXCHANGE, for JSON APIs.
func (s *System) SystemMap() map[string]float64 {
	m := make(map[string]float64, len(systemFields))
	for _, f := range systemFields {
		if v := *f.of(s); !math.IsNaN(v) {
			m[f.name] = v
		}
	}
	return m
}

// FieldNames lists the names that EXCHANGE has for system information, for documents and tests.
func FieldNames() []string {
	return slices.Sorted(maps.Keys(systemFieldByName))
}
