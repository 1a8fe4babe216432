"""The expressions in a `.pt2`: sizes and the relations between them, which PyTorch passes to sympy's evaluator."""

import ast

LONGEST = 4000
LARGEST = 2**64
HIGHEST_POWER = 8

INTEGER_FUNCTIONS = {
    *("Add", "Mul", "Pow", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing", "Max", "Min"),
    *("Integer", "Float", "Rational", "Symbol", "Abs", "floor", "ceiling", "Where", "Identity"),
    *("CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt", "TruncToFloat", "ToFloat", "IntTrueDiv", "FloatTrueDiv"),
    *("PowByNatural", "IsNonOverlappingAndDenseIndicator"),
    *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Equality", "Unequality"),
    *("StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"),
}
POWERS = {"Pow", "PowByNatural"}
OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.BitAnd, ast.BitOr)
UNARY = (ast.UAdd, ast.USub, ast.Invert, ast.Not)
RELATIONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def is_size_expression(text: str) -> bool:
    """Return whether a text is only an expression over integer symbols: no attribute, no index, no other call."""
    if len(text) > LONGEST or not text.isascii():
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _is_plain(tree.body)


def _is_plain(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=value):
            return isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= LARGEST)
        case ast.Name(id=name):
            return "__" not in name
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _is_plain(left) and _is_small_power(right)
        case ast.BinOp(left=left, op=op, right=right):
            return isinstance(op, OPERATORS) and _is_plain(left) and _is_plain(right)
        case ast.UnaryOp(op=op, operand=operand):
            return isinstance(op, UNARY) and _is_plain(operand)
        case ast.BoolOp(values=values):
            return all(map(_is_plain, values))
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            return all(isinstance(op, RELATIONS) for op in ops) and all(map(_is_plain, [left, *comparators]))
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=assumptions):
            return name.isidentifier() and "__" not in name and _are_assumptions(assumptions)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(digits))], keywords=precision):
            return _is_number(digits) and _are_assumptions(precision)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in INTEGER_FUNCTIONS:
            if name in POWERS and not (len(arguments) == 2 and _is_small_power(arguments[1])):
                return False
            return all(map(_is_plain, arguments))
    return False


def _is_small_power(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="Integer"), args=[inner], keywords=[]):
            return _is_small_power(inner)
        case ast.Call(
            func=ast.Name(id="Rational"), args=[ast.Constant(value=int(top)), ast.Constant(value=int(bottom))]
        ):
            return abs(top) <= HIGHEST_POWER and 0 < bottom <= HIGHEST_POWER
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_small_power(operand)
        case ast.Constant(value=int(value)):
            return 0 <= value <= HIGHEST_POWER
    return False


def _are_assumptions(keywords: list[ast.keyword]) -> bool:
    return all(
        keyword.arg is not None
        and keyword.arg.isidentifier()
        and isinstance(keyword.value, ast.Constant)
        and (isinstance(keyword.value.value, bool) or keyword.value.value in range(1, 100))
        for keyword in keywords
    )


def _is_number(digits: str) -> bool:
    try:
        return len(digits) < 40 and abs(float(digits)) < 1e40
    except ValueError:
        return False
