-- Wireshark dissector of the alpha-trio protocol, as docs/protocol.md defines it.
--
-- Every message is a list of fields of known sizes, so each is described by a table
-- and shown by one function, `show`.  What does not fit its description gets the expert
-- information "malformed"; nothing is ever read beyond the datagram.

local alpha = Proto("alphatrio", "alpha-trio (ALPHA)")

local VERSION = 1
local HEADER_SIZE, NODE_SIZE, TAG_SIZE = 8, 16, 16
local MOST_EARLY = 1400
local KINDS = {
    [1] = "SYN", [2] = "ACK", [3] = "ACKACK", [4] = "DATA",
    [5] = "S1", [6] = "A1", [7] = "S2", [8] = "A2", [9] = "COOKIE",
    [10] = "REPORT",
}
local SUITES = { [0] = "of the session", [1] = "ALPHA", [2] = "plain" }
local VERDICTS = { [0] = "nack", [1] = "ack" }
local CONTROLS = {
    [1] = "OPEN", [2] = "ACCEPT", [3] = "CLOSE", [4] = "TRACE", [5] = "PADDING",
}
local ROLES = { [1] = "relay", [2] = "peer" }
local GSO_TYPES = { [0] = "none", [1] = "TCP/IPv4", [4] = "TCP/IPv6", [5] = "UDP" }

local fields = {
    kind = ProtoField.uint8("alphatrio.kind", "Kind", base.DEC, KINDS),
    version = ProtoField.uint8("alphatrio.version", "Version"),
    suite = ProtoField.uint16("alphatrio.suite", "Suite", base.DEC, SUITES),
    receiver = ProtoField.uint32("alphatrio.receiver_id", "Receiver's id", base.HEX),
    sender = ProtoField.uint32("alphatrio.sender_id", "Sender's id", base.HEX),
    limit = ProtoField.uint16("alphatrio.limit", "Limit of roots", base.DEC),
    marks = ProtoField.uint8("alphatrio.marks", "Marks of relays", base.HEX),
    no_early = ProtoField.bool(
        "alphatrio.marks.no_early", "Early data", 8, { "not here", "no objection" }, 0x01),
    options = ProtoField.uint8("alphatrio.options", "Options of the end", base.HEX),
    takes_early = ProtoField.bool(
        "alphatrio.options.early", "Early data", 8, { "taken", "not taken" }, 0x01),
    zero = ProtoField.bytes("alphatrio.zero", "Zero"),
    nonce = ProtoField.bytes("alphatrio.nonce", "Nonce"),
    identity = ProtoField.bytes("alphatrio.identity", "Identity (Ed25519)"),
    share = ProtoField.bytes("alphatrio.share", "Share (X25519)"),
    signature_anchor = ProtoField.bytes(
        "alphatrio.signature_anchor", "Anchor of the signature chain"),
    ack_anchor = ProtoField.bytes(
        "alphatrio.acknowledgment_anchor", "Anchor of the acknowledgment chain"),
    cookie = ProtoField.bytes("alphatrio.cookie", "Cookie"),
    sealed_cookie = ProtoField.bytes("alphatrio.sealed_cookie", "Sealed cookie"),
    renewal = ProtoField.bytes("alphatrio.renewal", "Renewal of a session"),
    mac = ProtoField.bytes("alphatrio.mac", "MAC for the receiver"),
    padding = ProtoField.bytes("alphatrio.padding", "Padding"),
    signature = ProtoField.bytes("alphatrio.signature", "Signature (Ed25519)"),
    association = ProtoField.uint16("alphatrio.association", "Association"),
    shape = ProtoField.uint8("alphatrio.shape", "Shape", base.HEX),
    reliable = ProtoField.bool(
        "alphatrio.reliable", "Reliable", 8, { "answered by A2", "no" }, 0x80),
    control = ProtoField.bool(
        "alphatrio.control", "Control", 8, { "control messages", "no" }, 0x40),
    early_round = ProtoField.bool(
        "alphatrio.early_round", "Early data", 8, { "in the S1", "no" }, 0x20),
    depth = ProtoField.uint8(
        "alphatrio.depth", "Depth of the trees", base.DEC, nil, 0x07),
    round = ProtoField.uint32("alphatrio.round", "Round"),
    element = ProtoField.bytes("alphatrio.element", "Chain element"),
    packets = ProtoField.uint16("alphatrio.packets", "Packets"),
    roots = ProtoField.uint16("alphatrio.roots", "Roots"),
    root = ProtoField.bytes("alphatrio.root", "Root"),
    early = ProtoField.bytes("alphatrio.early", "Early data"),
    early_length = ProtoField.uint16("alphatrio.early_length", "Bytes of early data"),
    trial = ProtoField.bool("alphatrio.trial", "Trial, without early data"),
    proof = ProtoField.bool("alphatrio.proof", "The key alone, for early data"),
    digest = ProtoField.bytes("alphatrio.digest", "Digest of the S1"),
    ack_root = ProtoField.bytes("alphatrio.acknowledgment_root", "Acknowledgment root"),
    branch = ProtoField.bytes("alphatrio.branch", "Branch node"),
    index = ProtoField.uint16("alphatrio.index", "Packet of the round"),
    offset = ProtoField.uint32("alphatrio.offset", "Offset in the keystream"),
    body = ProtoField.bytes("alphatrio.body", "Body"),
    body_length = ProtoField.uint32("alphatrio.body_length", "Body length"),
    verdict = ProtoField.uint8("alphatrio.verdict", "Verdict", base.DEC, VERDICTS),
    secret = ProtoField.bytes("alphatrio.secret", "Secret"),
    tag = ProtoField.bytes("alphatrio.tag", "Tag of the two ends"),
    openings = ProtoField.uint16("alphatrio.openings", "Openings"),
    what = ProtoField.uint8("alphatrio.control_kind", "Kind", base.DEC, CONTROLS),
    anchor = ProtoField.bytes("alphatrio.control_anchor", "Anchor"),
    counter = ProtoField.uint64("alphatrio.counter", "Packet counter"),
    address = ProtoField.ipv6("alphatrio.address", "Address of the node"),
    hop_limit = ProtoField.uint8("alphatrio.hop_limit", "Hop limit of the TRACE"),
    role = ProtoField.uint8("alphatrio.role", "Role", base.DEC, ROLES),
    forth_passed = ProtoField.uint64("alphatrio.forth.passed", "Forth: passed"),
    forth_forged = ProtoField.uint32("alphatrio.forth.forged", "Forth: forged"),
    forth_replayed = ProtoField.uint32("alphatrio.forth.replayed", "Forth: replayed"),
    forth_unsolicited = ProtoField.uint32(
        "alphatrio.forth.unsolicited", "Forth: unsolicited"),
    forth_other = ProtoField.uint32("alphatrio.forth.other", "Forth: other"),
    back_passed = ProtoField.uint64("alphatrio.back.passed", "Back: passed"),
    back_forged = ProtoField.uint32("alphatrio.back.forged", "Back: forged"),
    back_replayed = ProtoField.uint32("alphatrio.back.replayed", "Back: replayed"),
    back_unsolicited = ProtoField.uint32(
        "alphatrio.back.unsolicited", "Back: unsolicited"),
    back_other = ProtoField.uint32("alphatrio.back.other", "Back: other"),
    gso_type = ProtoField.uint8(
        "alphatrio.frame.gso_type", "Segmentation", base.DEC, GSO_TYPES, 0x7f),
    gso_ecn = ProtoField.bool("alphatrio.frame.ecn", "ECN", 8, nil, 0x80),
    header_length = ProtoField.uint8(
        "alphatrio.frame.header_length", "Header length"),
    csum_start = ProtoField.uint8("alphatrio.frame.csum_start", "Checksum start"),
    needs_csum = ProtoField.bool(
        "alphatrio.frame.needs_csum", "Checksum to be completed", 8, nil, 0x80),
    csum_offset = ProtoField.uint8(
        "alphatrio.frame.csum_offset", "Checksum offset", base.DEC, nil, 0x7f),
    segment_size = ProtoField.uint16("alphatrio.frame.segment_size", "Segment size"),
    segment = ProtoField.uint16("alphatrio.frame.segment", "Segment"),
    packet = ProtoField.bytes("alphatrio.packet", "Inner packet"),
}
alpha.fields = fields

local malformed = ProtoExpert.new(
    "alphatrio.malformed", "Malformed", expert.group.MALFORMED, expert.severity.ERROR)
alpha.experts = { malformed }

local HEADER = {
    { fields.kind, 1 }, { fields.version, 1 }, { fields.suite, 2 },
    { fields.receiver, 4 },
}
local INTRODUCTION = {
    { fields.sender, 4 }, { fields.limit, 2 },
    { fields.marks, 1, { fields.no_early } },
    { fields.options, 1, { fields.takes_early } },
    { fields.nonce, 16 },
    { fields.identity, 32 }, { fields.share, 32 },
    { fields.signature_anchor, 16 }, { fields.ack_anchor, 16 },
}
local SIGNATURE = { { fields.signature, 64 } }
local MAC = { { fields.mac, 16 } }
local VARIANT = { { fields.cookie, 16 }, { fields.renewal, 16 } }
local PADDING = { { fields.padding, 32 } }
local COOKIE = { { fields.nonce, 16 }, { fields.sealed_cookie, 16 } }
local REPORT = {
    { fields.nonce, 16 }, { fields.identity, 32 }, { fields.address, 16 },
    { fields.hop_limit, 1 }, { fields.role, 1 }, { fields.zero, 2 },
    { fields.forth_passed, 8 }, { fields.forth_forged, 4 },
    { fields.forth_replayed, 4 }, { fields.forth_unsolicited, 4 },
    { fields.forth_other, 4 },
    { fields.back_passed, 8 }, { fields.back_forged, 4 },
    { fields.back_replayed, 4 }, { fields.back_unsolicited, 4 },
    { fields.back_other, 4 },
}
local ROUND = {
    { fields.association, 2 },
    {
        fields.shape, 1,
        { fields.reliable, fields.control, fields.early_round, fields.depth },
    },
    { fields.zero, 1 }, { fields.round, 4 }, { fields.element, 16 },
}
local S1_COUNTS = { { fields.packets, 2 }, { fields.roots, 2 }, { fields.zero, 4 } }
local A1 = { { fields.digest, 16 }, { fields.ack_root, 16 }, { fields.tag, TAG_SIZE } }
local S2_TAIL = { { fields.index, 2 }, { fields.zero, 2 }, { fields.offset, 4 } }
local A2 = {
    { fields.index, 2 }, { fields.verdict, 1 }, { fields.zero, 1 },
    { fields.secret, 16 },
}
local CONTROL = {
    { fields.what, 1 }, { fields.zero, 1 }, { fields.association, 2 },
    { fields.anchor, 16 },
}
local FRAME_WORD = {
    { fields.gso_type, 1, { fields.gso_type, fields.gso_ecn }, true },
    { fields.header_length, 1 }, { fields.csum_start, 1 },
    { fields.csum_offset, 1, { fields.needs_csum, fields.csum_offset }, true },
    { fields.segment_size, 2 }, { fields.segment, 2 },
}

-- Adds the fields of `layout` from `at` on.  Returns where they end, or nil and an
-- expert information if the datagram ends before.  A third entry of a field are the
-- parts of its byte: below it, or with a fourth entry in its place.
local function show(buffer, at, tree, layout)
    for _, entry in ipairs(layout) do
        local field, size, parts, in_place = entry[1], entry[2], entry[3], entry[4]
        if at + size > buffer:len() then
            tree:add_proto_expert_info(malformed, "Cut short")
            return nil
        end
        local range = buffer(at, size)
        local below = in_place and tree or tree:add(field, range)
        for _, part in ipairs(parts or {}) do
            below:add(part, range)
        end
        at = at + size
    end
    return at
end

local function times(layout, count)
    local repeated = {}
    for _ = 1, count do
        for _, entry in ipairs(layout) do
            repeated[#repeated + 1] = entry
        end
    end
    return repeated
end

local function show_rest(buffer, at, tree, field)
    local length = buffer:len() - at
    tree:add(fields.body_length, length):set_generated()
    if length > 0 then
        tree:add(field, buffer(at))
    end
    return buffer:len()
end

local function show_controls(buffer, at, tree)
    while at and at < buffer:len() do
        local name = CONTROLS[buffer(at, 1):uint()]
        if name == "PADDING" and buffer:len() - at < 20 then
            tree:add(fields.padding, buffer(at))  -- the last one may be cut short
            return buffer:len()
        end
        local item = tree:add(buffer(at), "Control message " .. (name or "?"))
        if not name then
            item:add_proto_expert_info(malformed, "Unknown control message")
        end
        at = show(buffer, at, item, CONTROL)
    end
    return at
end

-- One function a kind: takes what comes after the header, returns where it ends.

local function depth_of(buffer)
    return buffer(10, 1):bitfield(5, 3)
end

local function is_early(buffer)
    return buffer(10, 1):bitfield(2, 1) == 1
end

-- All between the root and the tag; the length of the message says how much that is.
local function show_early(buffer, at, tree)
    local length = buffer:len() - at - TAG_SIZE
    if length < 0 then
        tree:add_proto_expert_info(malformed, "Cut short")
        return nil
    end
    if length > MOST_EARLY then
        tree:add_proto_expert_info(malformed, "More early data than there may be")
    end
    tree:add(fields.early_length, length):set_generated()
    if length == 0 then
        tree:add(fields.trial, true):set_generated()
    else
        tree:add(fields.early, buffer(at, length))
    end
    return at + length
end

local function dissect_s1(buffer, tree)
    local at = show(buffer, 8, tree, ROUND)
    at = at and show(buffer, at, tree, S1_COUNTS)
    if not at then
        return nil
    end
    local packets, roots = buffer(32, 2):uint(), buffer(34, 2):uint()
    local wanted = math.ceil(packets / 2 ^ depth_of(buffer))
    if packets == 0 or roots ~= wanted then
        tree:add_proto_expert_info(malformed, "Packets, depth and roots do not agree")
    end
    at = show(buffer, at, tree, times({ { fields.root, NODE_SIZE } }, roots))
    if at and is_early(buffer) then
        if packets ~= 1 or buffer(10, 1):bitfield(0, 2) ~= 0 or depth_of(buffer) ~= 0 then
            tree:add_proto_expert_info(malformed, "Early data in a round of another kind")
        end
        at = show_early(buffer, at, tree)
    end
    return at and show(buffer, at, tree, { { fields.tag, TAG_SIZE } })
end

local function dissect_s2(buffer, tree)
    local at = show(buffer, 8, tree, ROUND)
    if not at then
        return nil
    end
    local branch = times({ { fields.branch, NODE_SIZE } }, depth_of(buffer))
    at = show(buffer, at, tree, branch)
    at = at and show(buffer, at, tree, S2_TAIL)
    if not at then
        return nil
    end
    if is_early(buffer) then
        tree:add(fields.proof, true):set_generated()
        return at
    end
    if buffer(10, 1):bitfield(1, 1) == 1 then
        return show_controls(buffer, at, tree)
    end
    return show_rest(buffer, at, tree, fields.body)
end

-- Openings and branch nodes of each in `size` bytes.  How many packets the round has is
-- not in the message; but no two products of the numbers that can be are the same.
local function openings_in(size)
    for nodes = 1, 7 do
        local count = size / (20 + nodes * NODE_SIZE)
        if count == math.floor(count) and count >= 1 and count <= 2 ^ (nodes - 1) then
            return count, nodes
        end
    end
end

local function dissect_a2(buffer, tree)
    local at = show(buffer, 8, tree, ROUND)
    if not at then
        return nil
    end
    local count, nodes = openings_in(buffer:len() - at - TAG_SIZE)
    if not count then
        tree:add_proto_expert_info(malformed, "No whole number of openings")
        return nil
    end
    tree:add(fields.openings, count):set_generated()
    for _ = 1, count do
        at = show(buffer, at, tree, A2)
        at = at and show(buffer, at, tree, times({ { fields.branch, NODE_SIZE } }, nodes))
    end
    return at and show(buffer, at, tree, { { fields.tag, TAG_SIZE } })
end

local function dissect_data(buffer, tree)
    local at = show(buffer, 8, tree, { { fields.counter, 8 } })
    if not at or at == buffer:len() then
        return at
    end
    at = show(buffer, at, tree, FRAME_WORD)
    return at and show_rest(buffer, at, tree, fields.packet)
end

-- Of a kind that always has the same length.
local function dissector_of(...)
    local parts, size = { ... }, HEADER_SIZE
    for _, layout in ipairs(parts) do
        for _, entry in ipairs(layout) do
            size = size + entry[2]
        end
    end
    return function(buffer, tree)
        local at = HEADER_SIZE
        for _, layout in ipairs(parts) do
            at = at and show(buffer, at, tree, layout)
        end
        if buffer:len() ~= size then
            local text = "Wrong length: %d bytes in the place of %d"
            tree:add_proto_expert_info(malformed, text:format(buffer:len(), size))
            return nil
        end
        return at
    end
end

local DISSECTORS = {
    SYN = dissector_of(INTRODUCTION, VARIANT, MAC, PADDING),
    ACK = dissector_of(INTRODUCTION, SIGNATURE, MAC),
    ACKACK = dissector_of(SIGNATURE, MAC),
    COOKIE = dissector_of(COOKIE, MAC),
    DATA = dissect_data,
    S1 = dissect_s1,
    A1 = dissector_of(ROUND, A1),
    S2 = dissect_s2,
    A2 = dissect_a2,
    REPORT = dissector_of(REPORT, SIGNATURE),
}

local function summary(buffer, name)
    if name:match("^[SA][12]$") and buffer:len() >= 16 then
        local association, round = buffer(8, 2):uint(), buffer(12, 4):uint()
        local early = buffer(10, 1):bitfield(2, 1) == 1 and "  early" or ""
        local text = "%s  association %d  round %d%s"
        return text:format(name, association, round, early)
    end
    return name
end

local function dissect_message(buffer, tree)
    local top = tree:add(alpha, buffer())
    if not show(buffer, 0, top, HEADER) then
        return "cut short"
    end
    local name = KINDS[buffer(0, 1):uint()]
    if buffer(1, 1):uint() ~= VERSION or not name then
        top:add_proto_expert_info(malformed, "Unknown kind or version")
        return "unknown message"
    end
    local text = summary(buffer, name)
    top:append_text(", " .. text)
    local at = DISSECTORS[name](buffer, top)
    if at and at < buffer:len() then
        top:add_proto_expert_info(malformed, "Longer than its kind")
    end
    return text
end

-- Where the message that begins at `start` ends.  A capture on the host that sends shows
-- a whole run of datagrams as one, as it was before the kernel or the device cut it up
-- (UDP_SEGMENT).  So a message ends where the next header to the same receiver begins.
local function end_of(buffer, start)
    local size = buffer:len()
    if size - start <= HEADER_SIZE or buffer(start + 4, 4):uint() == 0 then
        return size
    end
    local bytes = buffer:raw()
    local wanted = string.char(VERSION, 0, 0) .. bytes:sub(start + 5, start + 8)
    local found = start + HEADER_SIZE
    while true do
        found = bytes:find(wanted, found + 1, true)
        if not found then
            return size
        end
        if KINDS[bytes:byte(found - 1)] and found - 2 >= start + HEADER_SIZE then
            return found - 2
        end
    end
end

function alpha.dissector(buffer, pinfo, tree)
    pinfo.cols.protocol = "ALPHA"
    local texts, start = {}, 0
    repeat
        local until_ = end_of(buffer, start)
        local message = buffer(start, until_ - start):tvb()
        texts[#texts + 1] = dissect_message(message, tree)
        start = until_
    until start >= buffer:len()
    pinfo.cols.info = texts[1] .. (#texts > 1 and ", and " .. #texts - 1 .. " more" or "")
end

-- Where it is used

alpha.prefs.port = Pref.uint("UDP port", 1234, "Port of the daemons")

local registered
local function register()
    local ports = DissectorTable.get("udp.port")
    if registered then
        ports:remove(registered, alpha)
    end
    registered = alpha.prefs.port
    ports:add(registered, alpha)
end

function alpha.prefs_changed()
    register()
end

register()
